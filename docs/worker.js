/* Search where a page is opened from a folder. Browsers start no worker from file://, so this one is
   an invisible frame. The theme would load such a script from another host. */
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      const page = this.inside.document;
      page.open();
      page.write(
        "<script>postMessage = (data) => parent.postMessage(data, '*');" +
          "importScripts = (...urls) => urls.reduce((before, url) => before.then(() =>" +
          "new Promise((done) => { const script = document.createElement('script');" +
          "script.src = url; script.onload = done; document.body.appendChild(script); }))," +
          "Promise.resolve());</" + "script><script src='" + url + "'></" + "script>"
      );
      page.close();
    }
    postMessage(data) {
      // Not the frame's postMessage, which is replaced by one that answers this page.
      const send = () => this.inside.dispatchEvent(new MessageEvent("message", { data }));
      if (this.inside.document.readyState === "complete") send();
      else this.inside.addEventListener("load", send);
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
