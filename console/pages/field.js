// A labelled native control with its help, fault and way back. What is typed is kept here and told
// once it rests, so that an update of the page never takes a letter away from whoever types.
export default {
  template: `
    <div class="field" :id="id" :class="{'field-wrong': error, 'field-own': own, ['field-' + kind]: true}">
      <template v-if="kind === 'cards'">
        <fieldset :aria-describedby="described" :aria-invalid="error ? 'true' : null">
          <legend :class="{'sr-only': hideLabel}">{{ label }}</legend>
          <div class="cards">
            <label v-for="choice in choices" :key="choice.value" class="card-choice"
                   :class="{chosen: typed === choice.value}">
              <input type="radio" :name="id + '-radio'" :value="choice.value" v-model="typed" @change="tell">
              <span class="card-body">
                <span class="card-title">{{ choice.label }}
                  <span v-for="tag in choice.tags || []" :key="tag" class="tag"
                        :class="{'tag-accent': tag === 'recommended'}">{{ tag }}</span>
                </span>
                <span v-if="choice.note" class="card-note">{{ choice.note }}</span>
              </span>
            </label>
          </div>
        </fieldset>
      </template>
      <template v-else-if="kind === 'switch'">
        <div class="switch-row">
          <input :id="id + '-control'" type="checkbox" role="switch" class="switch" v-model="typed"
                 :disabled="disabled" :aria-describedby="described" @change="tell">
          <label :for="id + '-control'">{{ label }}</label>
          <button v-if="own" type="button" class="reset" @click="$emit('reset')"
                  :aria-label="'Reset ' + label">reset</button>
        </div>
      </template>
      <template v-else>
        <div class="field-head">
          <label :for="id + '-control'" :class="{'sr-only': hideLabel}">{{ label }}</label>
          <button v-if="own" type="button" class="reset" @click="$emit('reset')"
                  :aria-label="'Reset ' + label">reset</button>
        </div>
        <select v-if="kind === 'choice'" :id="id + '-control'" v-model="typed" :disabled="disabled"
                :aria-describedby="described" :aria-invalid="error ? 'true' : null" @change="tell">
          <option v-for="choice in choices" :key="choice.value" :value="choice.value">{{ choice.label }}</option>
        </select>
        <textarea v-else-if="kind === 'lines' || kind === 'json'" :id="id + '-control'" v-model="typed"
                  :rows="rows" spellcheck="false" :placeholder="placeholder"
                  :aria-describedby="described" :aria-invalid="error ? 'true' : null"
                  @input="later" @change="tell"></textarea>
        <div v-else class="input-row">
          <input :id="id + '-control'" :type="type" v-model="typed" :placeholder="placeholder"
                 :disabled="disabled" :inputmode="mode" :list="suggestions.length ? id + '-list' : null"
                 autocomplete="off" spellcheck="false"
                 :aria-describedby="described" :aria-invalid="error ? 'true' : null"
                 @input="later" @change="tell" @keydown.enter="tell">
          <span v-if="unit" class="unit" aria-hidden="true">{{ unit }}</span>
        </div>
        <datalist v-if="suggestions.length" :id="id + '-list'">
          <option v-for="it in suggestions" :key="it" :value="it"></option>
        </datalist>
      </template>
      <p v-if="error" class="fault" :id="id + '-error'">{{ error }}</p>
      <p v-if="help" class="help" :id="id + '-help'">{{ help }}</p>
    </div>
  `,
  props: {
    id: String,
    label: String,
    kind: String,
    value: [String, Boolean],
    version: Number,
    choices: { type: Array, default: () => [] },
    suggestions: { type: Array, default: () => [] },
    help: String,
    error: String,
    own: Boolean,
    unit: String,
    placeholder: String,
    hideLabel: Boolean,
    disabled: Boolean,
    type: { type: String, default: "text" },
  },
  emits: ["told", "reset"],
  data() {
    return { typed: this.value, told: this.value, timer: null };
  },
  watch: {
    // Told by the server: by its version, as its value may be the one from before.
    version() {
      clearTimeout(this.timer);
      this.typed = this.told = this.value;
    },
  },
  computed: {
    described() {
      const ids = [this.error && this.id + "-error", this.help && this.id + "-help"];
      return ids.filter(Boolean).join(" ") || null;
    },
    mode() {
      return { integer: "numeric", number: "decimal" }[this.kind] || null;
    },
    rows() {
      return Math.min(8, Math.max(2, String(this.typed).split("\n").length));
    },
  },
  methods: {
    later() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.tell(), 300);
    },
    tell() {
      clearTimeout(this.timer);
      if (this.typed === this.told) return;
      this.told = this.typed;
      this.$emit("told", this.typed);
    },
    focus() {
      const control = this.$el.querySelector("input, select, textarea");
      control.scrollIntoView({ block: "center" });
      control.focus();
    },
  },
  beforeUnmount() {
    clearTimeout(this.timer);
  },
};
