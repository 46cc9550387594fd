// A place to drop images on, or to choose them by a button. They are sent a few at a time, so that
// the browser holds no more than these, and one that fails does not take the others with it.
const BATCH_BYTES = 8 * 1024 * 1024;
const BATCH_FILES = 24;

export default {
  template: `
    <div class="drop" :id="id" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false" @drop.prevent="dropped">
      <input :id="id + '-files'" type="file" multiple :accept="accept" @change="chosen" :disabled="sending" tabindex="0">
      <label :for="id + '-files'" class="btn">{{ label }}</label>
      <p class="muted small">{{ hint }}</p>
      <template v-if="sending">
        <progress :value="sent" :max="total" :aria-label="'Sending images'"></progress>
        <p class="small" role="status">{{ sent }} of {{ total }} sent</p>
      </template>
      <p v-if="problem" class="fault" role="alert">{{ problem }}</p>
    </div>
  `,
  props: { id: String, url: String, accept: String, label: String, hint: String },
  emits: ["sent"],
  data() {
    return { over: false, sending: false, sent: 0, total: 0, problem: "" };
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
      Object.assign(this, { sending: true, sent: 0, total: files.length, problem: "" });
      try {
        while (files.length) {
          const batch = [];
          let bytes = 0;
          while (files.length && batch.length < BATCH_FILES && (!batch.length || bytes + files[0].size <= BATCH_BYTES)) {
            bytes += files[0].size;
            batch.push(files.shift());
          }
          await this.sendBatch(batch);
          this.sent += batch.length;
        }
      } catch (error) {
        this.problem = "The images could not be sent: " + error.message;
      } finally {
        this.sending = false;
        this.$emit("sent");
      }
    },
    async sendBatch(batch) {
      const form = new FormData();
      for (const [number, file] of batch.entries()) form.append("file" + number, file, file.name);
      const prefix = this.url.startsWith("/") ? window.path_prefix || "" : "";
      const answer = await fetch(prefix + this.url, { method: "POST", body: form });
      if (!answer.ok) throw new Error(answer.status === 413 ? "they are too large" : "the console answered " + answer.status);
    },
  },
};
