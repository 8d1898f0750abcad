// What the page does beyond reading: keys, walking through grids, looking ahead, dropping a picture, copying a line.

const inField = (target) => target.closest("input, select, textarea, dialog, pre, summary, .map") !== null && !target.matches("a");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || inField(event.target)) return;
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector('input[type="search"]').focus();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const link = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (link && !event.defaultPrevented) link.click();
});

class UnitGrid extends HTMLElement {
  connectedCallback() {
    this.addEventListener("keydown", (event) => {
      const units = [...this.querySelectorAll("a.unit")];
      const at = units.indexOf(document.activeElement);
      if (at < 0) return;
      const across = units.filter((unit) => unit.offsetTop === units[0].offsetTop).length;
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: units.length - 1 - at }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      units[Math.min(Math.max(at + step, 0), units.length - 1)].focus();
    });
  }
}

class ArchitectureMap extends HTMLElement {
  #seen = new Map();
  #timer = 0;
  #asked = "";

  connectedCallback() {
    const aside = this.querySelector(".peek");
    const choose = (event) => {
      const link = event.target.closest("a[data-layer]");
      if (!link || link.hasAttribute("aria-current")) return false;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#show(link, aside), event.type === "pointerover" ? 90 : 0);
      return true;
    };
    this.addEventListener("pointerover", (event) => { if (event.pointerType !== "touch") choose(event); });
    this.addEventListener("focusin", choose);
    // The first tap shows a layer, the second opens it.
    this.addEventListener("click", (event) => { if (event.pointerType === "touch" && choose(event)) event.preventDefault(); });
    const current = this.querySelector("a[aria-current]");
    const map = this.querySelector(".map");
    if (current && map.scrollHeight > map.clientHeight) {
      map.scrollTop = current.getBBox().y - map.clientHeight / 2;
    }
  }

  async #show(link, aside) {
    const address = `${link.getAttribute("href")}-/peek/`;
    this.#asked = address;
    if (!this.#seen.has(address)) {
      const answer = await fetch(address);
      if (!answer.ok) return;
      this.#seen.set(address, await answer.text());
    }
    if (this.#asked !== address) return; // an answer that came late: another layer was chosen meanwhile
    this.querySelector("a[aria-current]")?.removeAttribute("aria-current");
    link.setAttribute("aria-current", "true");
    aside.replaceChildren(...new DOMParser().parseFromString(this.#seen.get(address), "text/html").body.childNodes);
  }
}

class ImageMap extends HTMLElement {
  connectedCallback() {
    const heat = this.querySelector(".heat");
    const whose = document.querySelector("#whose");
    const show = (event) => {
      const unit = event.target.closest("a.unit[data-map]");
      if (!unit || heat.dataset.of === unit.dataset.map) return;
      heat.dataset.of = unit.dataset.map;
      const picture = new Image();
      picture.src = unit.dataset.map;
      picture.decode().then(() => {
        if (heat.dataset.of !== unit.dataset.map) return;
        heat.src = picture.src;
        heat.hidden = false;
        whose.textContent = `Where ${unit.querySelector("img").alt} fires.`;
      }, () => {
        heat.hidden = true;
        delete heat.dataset.of;
        whose.textContent = "There is no map of this unit here, or the model is busy: point at it again.";
      });
    };
    document.addEventListener("pointerover", show);
    document.addEventListener("focusin", show);
    if (!this.dataset.place) return;
    this.querySelector(".shot").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const query = new URLSearchParams({
        layer: this.dataset.place,
        across: ((event.clientX - box.left) / box.width).toFixed(4),
        down: ((event.clientY - box.top) / box.height).toFixed(4),
      });
      location.assign(`?${query}#place`);
    });
  }
}

class PictureDrop extends HTMLElement {
  connectedCallback() {
    const form = this.querySelector("form");
    const input = this.querySelector('input[type="file"]');
    input.addEventListener("change", () => {
      this.#send(form, input.files[0]);
      input.value = "";  // the same file can be chosen again
    });
    let inside = 0;
    const over = (on) => document.body.classList.toggle("dropping", on);
    addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { inside += 1; over(true); } });
    addEventListener("dragleave", () => { inside = Math.max(inside - 1, 0); over(inside > 0); });
    const files = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      inside = 0;
      over(false);
      this.#send(form, event.dataTransfer?.files[0]);
    });
    addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
      if (file) this.#send(form, file);
    });
  }

  async #send(form, file) {
    if (!file) return;
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-label", "Your picture");
    const text = document.createElement("p");
    text.setAttribute("role", "status");
    text.textContent = `Running ${form.dataset.run} on your picture …`;
    dialog.append(text);
    document.body.append(dialog);
    dialog.addEventListener("close", () => dialog.remove());
    dialog.showModal();
    let said;
    try {
      const answer = await fetch(form.action, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      if (answer.ok) {
        location.assign(answer.url);
        return;
      }
      said = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main p")?.textContent;
    } catch {
      said = "The server does not answer.";
    }
    text.textContent = said || "That did not work.";
    const close = document.createElement("button");
    close.textContent = "Close";
    close.addEventListener("click", () => dialog.close());
    dialog.append(close);
    close.focus();
  }
}

class CopyText extends HTMLElement {
  connectedCallback() {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(this.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    this.append(button);
  }
}

class RunProgress extends HTMLElement {
  // While a run is made: count its shards, and show the page anew when something that can be seen was added.
  connectedCallback() {
    setTimeout(() => this.#look(), 3000);
  }

  async #look() {
    const answer = await fetch("/index.json").catch(() => null);
    const run = answer?.ok ? (await answer.json()).runs.find((one) => one.run === this.dataset.run) : undefined;
    if (run && run.digest !== this.dataset.digest && document.activeElement === document.body) {
      location.reload();
      return;
    }
    const counts = this.querySelectorAll(".count");
    run?.stages.forEach((stage, index) => {
      const of = stage.planned ? ` of ${stage.planned}` : "";
      counts[index].textContent = stage.complete ? "complete" : stage.done ? `${stage.done}${of} ${stage.done === 1 && !of ? "shard" : "shards"}` : "not begun";
    });
    setTimeout(() => this.#look(), 3000);
  }
}

customElements.define("unit-grid", UnitGrid);
customElements.define("architecture-map", ArchitectureMap);
customElements.define("image-map", ImageMap);
customElements.define("picture-drop", PictureDrop);
customElements.define("copy-text", CopyText);
customElements.define("run-progress", RunProgress);
