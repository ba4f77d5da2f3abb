// A page that is opened from a disk may start no worker: there the search runs in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc = `<script>postMessage = frameElement.answer</script><script src="${url}"></script>`;
      const ready = new Promise((done) => (frame.onload = done));
      this.postMessage = (data) => ready.then(() => frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
      document.body.append(frame);
    }
  };
