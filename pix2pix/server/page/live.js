// Translation while one draws: one request at a time, of the newest drawing. Results of a drawing that has been replaced
// (loaded, cleared, undone) are never shown.

export class Live {
  // `send(signal)` gives a promise of a result; `show(result, milliseconds)` and `fail(error)` hear of it.
  constructor(send, show, fail) {
    Object.assign(this, { send, show, fail });
    this.running = null;
    this.isDirty = false;
  }

  request(isNew) {
    if (this.running && isNew) this.running.abort();
    this.isDirty = true;
    if (!this.running) this.run();
  }

  async run() {
    while (this.isDirty) {
      this.isDirty = false;
      const control = this.running = new AbortController();
      const started = performance.now();
      try {
        const result = await this.send(control.signal);
        if (!control.signal.aborted) await this.show(result, performance.now() - started);
      } catch (error) {
        if (!control.signal.aborted) {
          this.fail(error);
          if (error.retryAfter) {
            await new Promise((done) => setTimeout(done, 1000 * error.retryAfter));
            this.isDirty = true;
          }
        }
      }
    }
    this.running = null;
  }
}
