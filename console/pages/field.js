// A labelled native control with help, error and reset. It keeps what the user types and sends it
// once typing pauses, so that an update of the page never overwrites a letter.
export default {
  template: `
    <div class="field" :id="id" :class="{'field-error': error, 'field-changed': changed, ['field-' + kind]: true}">
      <template v-if="kind === 'cards'">
        <fieldset :aria-describedby="described" :aria-invalid="error ? 'true' : null">
          <legend :class="{'sr-only': hideLabel}">{{ label }}</legend>
          <div class="cards">
            <label v-for="choice in choices" :key="choice.value" class="card-choice"
                   :class="{chosen: typed === choice.value}">
              <input type="radio" :name="id + '-radio'" :value="choice.value" v-model="typed" @change="send">
              <span class="card-body">
                <span class="card-title">{{ choice.label }}
                  <span v-for="tag in choice.tags || []" :key="tag" class="tag"
                        :class="{'tag-accent': tag === 'recommended'}">{{ tag }}</span>
                </span>
                <code v-if="choice.name" class="raw">{{ choice.name }}</code>
                <span v-if="choice.note" class="card-note">{{ choice.note }}</span>
              </span>
            </label>
          </div>
        </fieldset>
      </template>
      <template v-else-if="kind === 'switch'">
        <div class="switch-row">
          <input :id="id + '-control'" type="checkbox" role="switch" class="switch" v-model="typed"
                 :disabled="disabled" :aria-describedby="described" @change="send">
          <label :for="id + '-control'">{{ label }}</label>
          <code v-if="name" class="raw">{{ name }}</code>
          <button v-if="changed" type="button" class="reset" @click="$emit('reset')"
                  :aria-label="'Reset ' + label">reset</button>
        </div>
      </template>
      <template v-else>
        <div class="field-head">
          <span class="field-title">
            <label :for="id + '-control'" :class="{'sr-only': hideLabel}">{{ label }}</label>
            <code v-if="name" class="raw">{{ name }}</code>
          </span>
          <button v-if="changed" type="button" class="reset" @click="$emit('reset')"
                  :aria-label="'Reset ' + label">reset</button>
        </div>
        <select v-if="kind === 'choice'" :id="id + '-control'" v-model="typed" :disabled="disabled"
                :aria-describedby="described" :aria-invalid="error ? 'true' : null" @change="send">
          <option v-for="choice in choices" :key="choice.value" :value="choice.value">{{ choice.label }}</option>
        </select>
        <textarea v-else-if="kind === 'lines' || kind === 'json'" :id="id + '-control'" v-model="typed"
                  :rows="rows" spellcheck="false" :placeholder="placeholder"
                  :aria-describedby="described" :aria-invalid="error ? 'true' : null"
                  @input="sendLater" @change="send"></textarea>
        <div v-else class="input-row">
          <input :id="id + '-control'" :type="type" v-model="typed" :placeholder="placeholder"
                 :disabled="disabled" :inputmode="mode" :list="suggestions.length ? id + '-list' : null"
                 autocomplete="off" spellcheck="false"
                 :aria-describedby="described" :aria-invalid="error ? 'true' : null"
                 @input="sendLater" @change="send" @keydown.enter="send">
          <span v-if="unit" class="unit" aria-hidden="true">{{ unit }}</span>
        </div>
        <datalist v-if="suggestions.length" :id="id + '-list'">
          <option v-for="it in suggestions" :key="it" :value="it"></option>
        </datalist>
      </template>
      <p v-if="error" class="error" :id="id + '-error'">{{ error }}</p>
      <p v-if="help" class="help" :id="id + '-help'">{{ help }}</p>
    </div>
  `,
  props: {
    id: String,
    label: String,
    name: String,
    kind: String,
    value: [String, Boolean],
    version: Number,
    choices: { type: Array, default: () => [] },
    suggestions: { type: Array, default: () => [] },
    help: String,
    error: String,
    changed: Boolean,
    unit: String,
    placeholder: String,
    hideLabel: Boolean,
    disabled: Boolean,
    type: { type: String, default: "text" },
  },
  emits: ["change", "reset"],
  data() {
    return { typed: this.value, sent: this.value, timer: null };
  },
  watch: {
    // The server sets a value by its version, as the value may equal an earlier one.
    version() {
      clearTimeout(this.timer);
      this.typed = this.sent = this.value;
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
    sendLater() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.send(), 300);
    },
    send() {
      clearTimeout(this.timer);
      if (this.typed === this.sent) return;
      this.sent = this.typed;
      this.$emit("change", this.typed);
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
