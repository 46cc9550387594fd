// An area to drop images on, with a button to choose them. It uploads a few at a time, so that the
// browser holds only these in memory and one failure does not affect the other batches.
const BATCH_BYTES = 8 * 1024 * 1024;
const BATCH_FILES = 24;

export default {
  template: `
    <div class="drop" :id="id" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false" @drop.prevent="dropped">
      <input :id="id + '-files'" type="file" multiple :accept="accept" @change="chosen" :disabled="sending" tabindex="0">
      <label :for="id + '-files'" class="btn">{{ label }}</label>
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
    return { over: false, sending: false, uploaded: 0, total: 0, problem: "" };
  },
  methods: {
    focus() {
      this.$el.scrollIntoView({ block: "center" });
      this.$el.querySelector("input").focus();
    },
    chosen(event) {
      const files = [...event.target.files];
      event.target.value = "";
      this.send(files);
    },
    dropped(event) {
      this.over = false;
      this.send([...event.dataTransfer.files]);
    },
    async send(files) {
      if (this.sending || !files.length) return;
      Object.assign(this, { sending: true, uploaded: 0, total: files.length, problem: "" });
      try {
        while (files.length) {
          const batch = [];
          let bytes = 0;
          while (files.length && batch.length < BATCH_FILES && (!batch.length || bytes + files[0].size <= BATCH_BYTES)) {
            bytes += files[0].size;
            batch.push(files.shift());
          }
          await this.sendBatch(batch);
          this.uploaded += batch.length;
        }
      } catch (error) {
        this.problem = "The upload failed: " + error.message;
      } finally {
        this.sending = false;
        this.$emit("complete");
      }
    },
    async sendBatch(batch) {
      const form = new FormData();
      for (const [number, file] of batch.entries()) form.append("file" + number, file, file.name);
      const prefix = this.url.startsWith("/") ? window.path_prefix || "" : "";
      const answer = await fetch(prefix + this.url, { method: "POST", body: form });
      if (!answer.ok) throw new Error(answer.status === 413 ? "the files are too large" : "the console responded with status " + answer.status);
    },
  },
};
