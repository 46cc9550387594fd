// A moment in the reader's time zone with UTC beside it, or the seconds since it.
export default {
  template: `<time :datetime="iso" :title="title">{{ text }}</time>`,
  props: { iso: String, kind: String },
  data: () => ({ now: Date.now(), timer: null }),
  mounted() {
    if (this.kind === 'elapsed') this.timer = setInterval(() => { this.now = Date.now(); }, 1000);
  },
  unmounted() { clearInterval(this.timer); },
  computed: {
    moment() { return new Date(this.iso); },
    title() { return this.iso.slice(0, 19).replace('T', ' ') + ' UTC'; },
    text() {
      if (this.kind === 'elapsed') return this.span((this.now - this.moment) / 1000);
      const two = (number) => String(number).padStart(2, '0');
      const it = this.moment;
      const clock = `${two(it.getHours())}:${two(it.getMinutes())}`;
      if (this.kind === 'clock') return `${clock}:${two(it.getSeconds())}`;
      const day = `${it.getFullYear()}-${two(it.getMonth() + 1)}-${two(it.getDate())}`;
      const utc = `${this.iso.slice(11, 16)} UTC`;
      return it.getTimezoneOffset() === 0 ? `${day} ${utc}` : `${day} ${clock} (${utc})`;
    },
  },
  methods: {
    span(seconds) {
      const all = Math.max(0, Math.round(seconds));
      const parts = [[Math.floor(all / 3600), 'h'], [Math.floor(all / 60) % 60, 'min'], [all % 60, 's']];
      const shown = parts.filter(([number]) => number).slice(0, 2);
      return shown.map(([number, unit]) => `${number} ${unit}`).join(' ') || '0 s';
    },
  },
};
