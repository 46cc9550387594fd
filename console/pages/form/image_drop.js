// An area to drop images and folders on, with buttons to choose them. It uploads a few files at a
// time, so that the browser holds only these in memory and one failure does not affect the other
// batches. An image and the caption of its name are in one batch.
const BATCH_BYTES = 8 * 1024 * 1024;
const BATCH_FILES = 24;
const MAX_FILES = 20000;
const MAX_REFUSED = 20;

function isSystemFile(path) {
  return path.split("/").some((part) => part.startsWith(".") || /^(__macosx|thumbs\.db|desktop\.ini)$/i.test(part));
}

// Resolves to the files below an entry of a drop, each with its path.
async function filesBelow(entry, found) {
  if (found.length >= MAX_FILES) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, path: entry.fullPath.replace(/^\/+/, "") });
    return;
  }
  const reader = entry.createReader();
  while (true) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    for (const each of entries) await filesBelow(each, found);
  }
}

export default {
  template: `
    <div class="drop" :id="id" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false" @drop.prevent="dropped">
      <input :id="id + '-files'" type="file" multiple :accept="accept" @change="chosen" tabindex="0">
      <label :for="id + '-files'" class="btn">{{ label }}</label>
      <button type="button" class="btn btn-quiet" @click="chooseFolder">Choose a folder</button>
      <p class="muted small">{{ hint }}</p>
      <template v-if="sending">
        <progress :value="uploaded" :max="total" :aria-label="'Uploading images'"></progress>
        <p class="small" role="status">{{ uploaded }} of {{ total }} uploaded</p>
      </template>
      <p v-if="problem" class="error" role="alert">{{ problem }}</p>
    </div>
  `,
  props: { id: String, url: String, accept: String, label: String, hint: String },
  emits: ["complete"],
  data() {
    return { over: false, sending: false, uploaded: 0, total: 0, problem: "", waiting: [], refused: [], failed: [] };
  },
  methods: {
    focus() {
      this.$el.scrollIntoView({ block: "center" });
      this.$el.querySelector("input").focus();
    },
    chosen(event) {
      const files = [...event.target.files];
      event.target.value = "";
      this.send(files.map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    },
    chooseFolder() {
      const input = document.createElement("input");
      Object.assign(input, { type: "file", webkitdirectory: true, onchange: this.chosen });
      input.click();
    },
    async dropped(event) {
      this.over = false;
      // The entries are gone after the first await.
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
      const files = [...event.dataTransfer.files].map((file) => ({ file, path: file.name }));
      if (!entries.some((entry) => entry && entry.isDirectory)) {
        this.send(files);
        return;
      }
      const found = [];
      try {
        for (const entry of entries) if (entry) await filesBelow(entry, found);
      } catch (error) {
        this.problem = "The folder cannot be read: " + error.message;
        return;
      }
      this.send(found);
    },
    // What is added while other files are sent follows them.
    async send(files) {
      if (!files.length) return;
      const suffixes = this.accept.split(",");
      const taken = [];
      for (const each of files) {
        if (isSystemFile(each.path)) continue;
        (suffixes.some((suffix) => each.path.toLowerCase().endsWith(suffix)) ? taken : this.refused).push(each);
      }
      if (!this.sending) Object.assign(this, { uploaded: 0, total: 0, problem: "", failed: [] });
      if (files.length >= MAX_FILES) this.problem = "Only the first " + MAX_FILES + " files are read.";
      this.total += taken.length;
      this.waiting.push(...this.batches(taken));
      if (this.sending) return;
      this.sending = true;
      while (this.waiting.length) {
        const batch = this.waiting.shift();
        try {
          await this.sendBatch(batch);
          this.uploaded += batch.length;
        } catch (error) {
          this.failed.push(...batch);
          const others = this.failed.length - 1;
          this.problem = this.failed[0].path + (others ? " and " + others + " more" : "") + " could not be uploaded: " + error.message + ". Add what is missing again.";
        }
      }
      this.sending = false;
      this.$emit("complete", this.refused.splice(0).slice(0, MAX_REFUSED).map((each) => each.path));
    },
    batches(files) {
      const groups = new Map();
      for (const each of files) {
        const stem = each.path.replace(/\.[^./]*$/, "").toLowerCase();
        groups.set(stem, [...(groups.get(stem) || []), each]);
      }
      const batches = [];
      let batch = [], bytes = 0;
      for (const group of groups.values()) {
        const size = group.reduce((sum, each) => sum + each.file.size, 0);
        if (batch.length && (batch.length + group.length > BATCH_FILES || bytes + size > BATCH_BYTES)) {
          batches.push(batch);
          [batch, bytes] = [[], 0];
        }
        batch.push(...group);
        bytes += size;
      }
      if (batch.length) batches.push(batch);
      return batches;
    },
    async sendBatch(batch) {
      const form = new FormData();
      for (const [number, { file, path }] of batch.entries()) {
        const name = path.toWellFormed ? path.toWellFormed() : path;
        form.append("file" + number, file, encodeURIComponent(name));
      }
      const prefix = this.url.startsWith("/") ? window.path_prefix || "" : "";
      const answer = await fetch(prefix + this.url, { method: "POST", body: form });
      if (!answer.ok) throw new Error(answer.status === 413 ? "the files are too large" : "the console responded with status " + answer.status);
    },
  },
};
