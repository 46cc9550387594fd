// Samples of a job, or of several side by side: a slider chooses the step, and a click enlarges an
// image. In the dialog the arrow keys change the step.
export default {
  template: `
    <div class="viewer" :id="id">
      <div v-if="steps.length > 1" class="viewer-step">
        <label :for="id + '-step'">Step</label>
        <!-- The value follows the maximum, which limits it: v-model would set it first. -->
        <input :id="id + '-step'" type="range" min="0" :max="steps.length - 1" step="1" :value="index"
               :aria-valuetext="'step ' + number(step)" @input="index = Number($event.target.value)">
        <output :for="id + '-step'">{{ number(step) }}</output>
      </div>
      <p v-else-if="steps.length" class="strong">Step {{ number(step) }}</p>
      <p v-if="jobs.length === 1 && steps.length" class="viewer-file">
        <a v-if="file" class="btn btn-small" :href="file.href" :download="file.name">
          Download the file of step {{ number(step) }} ({{ file.size }})</a>
        <span v-else class="muted small">{{ jobs[0].note }}</span>
      </p>
      <div class="viewer-rows" :class="{'viewer-grid': jobs.length === 1}">
      <div v-for="row in rows" :key="row.key" class="viewer-row">
        <p class="muted small break">{{ row.prompt }}</p>
        <div class="viewer-images">
          <figure v-for="(image, place) in row.images" :key="place" class="sample">
            <a v-if="image" :href="image.src" target="_blank" rel="noopener" @click.prevent="open(row, place)">
              <img :src="image.src" :alt="alt(row, place)" loading="lazy">
            </a>
            <div v-else class="viewer-none">No sample at this step</div>
            <figcaption v-if="jobs.length > 1" class="small break">{{ jobs[place].name }}</figcaption>
          </figure>
        </div>
      </div>
      </div>
      <dialog ref="dialog" class="lightbox" :aria-label="opened ? alt(opened, place) : 'Sample'"
              @click.self="close" @keydown.left.prevent="turn(-1)" @keydown.right.prevent="turn(1)">
        <template v-if="opened">
          <img v-if="large" :src="large.src" :alt="alt(opened, place)">
          <div v-else class="viewer-none">No sample at this step</div>
          <div class="lightbox-bar">
            <button type="button" class="btn" :disabled="index === 0" @click="turn(-1)">Earlier step</button>
            <span class="small break">Step {{ number(step) }}: {{ opened.prompt }}</span>
            <button type="button" class="btn" :disabled="index === steps.length - 1" @click="turn(1)">Later step</button>
            <button type="button" class="btn" @click="close">Close</button>
          </div>
        </template>
      </dialog>
    </div>`,
  // jobs: [{name, note, steps: {step: {images: {key: {prompt, src}}, file: {href, name, size} | null}}}]
  props: { id: String, jobs: Array },
  data: () => ({ index: 0, key: null, place: 0 }),
  created() { this.index = Math.max(this.steps.length - 1, 0); },
  computed: {
    steps() {
      const all = this.jobs.flatMap((job) => Object.keys(job.steps).map(Number));
      return [...new Set(all)].sort((a, b) => a - b);
    },
    step() { return this.steps[Math.min(this.index, this.steps.length - 1)] ?? 0; },
    file() { return this.jobs[0]?.steps[this.step]?.file; },
    rows() {
      const prompts = {};
      for (const job of this.jobs) {
        for (const made of Object.values(job.steps)) {
          for (const [key, image] of Object.entries(made.images)) prompts[key] ??= image.prompt;
        }
      }
      const images = (key) => this.jobs.map((job) => job.steps[this.step]?.images[key]);
      const rows = Object.entries(prompts).map(([key, prompt]) => ({ key, prompt, images: images(key) }));
      return rows.sort((a, b) => a.key.localeCompare(b.key, 'en', { numeric: true }));
    },
    opened() { return this.rows.find((row) => row.key === this.key); },
    large() { return this.opened?.images[this.place]; },
  },
  watch: {
    // The newest samples are shown as they arrive, unless the reader looks at earlier ones.
    steps(now, before) {
      if (this.index >= before.length - 1) this.index = now.length - 1;
    },
  },
  methods: {
    number(step) { return step.toLocaleString('en-US'); },
    alt(row, place) {
      const name = this.jobs.length > 1 ? `${this.jobs[place].name}: ` : '';
      return `${name}${row.prompt}, at step ${this.step}`;
    },
    turn(by) { this.index = Math.min(Math.max(this.index + by, 0), this.steps.length - 1); },
    open(row, place) {
      this.key = row.key;
      this.place = place;
      this.$refs.dialog.showModal();
    },
    close() { this.$refs.dialog.close(); },
  },
};
