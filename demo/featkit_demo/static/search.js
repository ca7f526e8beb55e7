// The search page: browse a sample of the index; search with an indexed image, or one dropped, pasted or chosen.
// All data comes from the routes of featkit.serve. File names become text nodes, never markup.

const FIRST_K = 24;
const MORE_K = 24;
const MAX_K = 240;
const SAMPLE = 48;
const NARROWEST = 0.56; // limit of height / width of a card: a panorama must not fill a whole row
const WIDEST = 2.2;
// Explanations of statuses from a proxy, which gives no reason of its own.
const PROXY_ANSWERS = {
  403: "Access is forbidden, by a proxy or firewall in front of the server.",
  413: "The image is too large for a proxy in front of the server; choose a smaller one.",
  429: "Too many requests; wait a moment and try again.",
  502: "The server is not responding; try again in a moment.",
  503: "The server is not responding; try again in a moment.",
  504: "The server took too long to respond; try again, or choose a smaller image.",
};

export function start(root) {
  const page = root.querySelector(".fk-page");
  if (!page || page.dataset.started) return;
  page.dataset.started = "yes";
  new SearchPage(page).open();
}

class SearchPage {
  constructor(page) {
    this.page = page;
    this.parts = Object.fromEntries([...page.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.file = null; // the last image that the user chose; the address bar cannot hold it
    this.k = FIRST_K;
    this.seed = 0;
    this.where = new URLSearchParams(location.search).get("where") ?? ""; // the filter, which the address bar holds
    this.order = new URLSearchParams(location.search).get("order") ?? ""; // how hits are refined, such as rerank=100
    this.total = 0;
    this.request = null;
    this.actions = {
      home: () => this.go(""),
      choose: () => this.parts.file.click(),
      shuffle: () => ((this.seed += 1), this.show()),
      more: () => ((this.k += MORE_K), this.show({ keepPlace: true })),
      theme: () => document.body.classList.toggle("dark"),
    };
  }

  open() {
    this.page.addEventListener("click", (event) => this.clicked(event));
    this.parts.file.addEventListener("change", () => this.take(this.parts.file.files[0]));
    document.addEventListener("paste", (event) => this.take(firstImage(event.clipboardData)));
    window.addEventListener("hashchange", () => this.arrived());
    this.parts.filter.value = this.where;
    this.parts.filterForm.addEventListener("submit", (event) => (event.preventDefault(), this.filter(this.parts.filter.value)));
    // "search" fires for the cross in the field, which empties it.
    this.parts.filter.addEventListener("search", () => this.parts.filter.value || this.filter(""));
    this.parts.order.value = this.order;
    if (this.parts.order.selectedIndex < 0) this.parts.order.value = this.order = ""; // not one of the choices
    this.parts.order.addEventListener("change", () => this.refine(this.parts.order.value));
    this.listenForDrops();
    this.counted = this.countImages();
    this.arrived();
  }

  clicked(event) {
    const card = event.target.closest("[data-id]");
    if (card) return this.go(`item-${card.dataset.id}`);
    const action = event.target.closest("[data-action]");
    if (action) this.actions[action.dataset.action]();
  }

  listenForDrops() {
    let depth = 0; // dragenter and dragleave fire for every element along the way
    const veil = (shown) => (this.parts.veil.hidden = !shown);
    const carriesFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    document.addEventListener("dragenter", (event) => carriesFile(event) && veil((depth += 1) > 0));
    document.addEventListener("dragleave", (event) => carriesFile(event) && veil((depth -= 1) > 0));
    document.addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      depth = 0;
      veil(false);
      this.take(event.dataTransfer.files[0]);
    });
  }

  take(file) {
    if (!file) return;
    this.file = file;
    this.parts.file.value = "";
    if (location.hash === "#upload") this.arrived();
    else this.go("upload");
  }

  filter(where) {
    this.where = where.trim();
    this.keepInAddress("where", this.where);
    this.counted = this.countImages();
    this.arrived();
  }

  refine(order) {
    this.order = order;
    this.keepInAddress("order", order);
    this.arrived();
  }

  keepInAddress(name, value) {
    const address = new URL(location.href);
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
    history.replaceState(null, "", address);
  }

  go(place) {
    if (location.hash.replace("#", "") === place) return this.show();
    if (place) location.hash = place;
    else {
      history.pushState(null, "", location.pathname + location.search);
      this.arrived();
    }
  }

  arrived() {
    this.k = FIRST_K;
    this.show();
  }

  async show({ keepPlace = false } = {}) {
    this.request?.abort();
    this.request = new AbortController();
    this.complain("");
    this.complainOfFilter("");
    this.page.dataset.state = "loading";
    const item = /^#item-(\d+)$/.exec(location.hash);
    try {
      if (item) await this.showNeighbors(Number(item[1]));
      else if (location.hash === "#upload" && this.file) await this.showUpload(this.file);
      else await this.showGallery();
      if (!keepPlace) this.toTop();
    } catch (error) {
      if (error.name === "AbortError") return; // a newer request replaced this one
      const text = error instanceof Refused ? error.message : "The server is not responding; is `featkit demo` still running?";
      if (this.where && text.startsWith("The filter ")) this.complainOfFilter(text);
      else this.complain(text);
    }
    this.page.dataset.state = "ready";
  }

  async showGallery() {
    const answer = await this.call(`v1/sample?limit=${SAMPLE}&seed=${this.seed}${this.whereParameter()}`);
    this.describeQuery(null);
    this.title("Pick an image to start from", answer.total > answer.items.length ? `${answer.items.length} of ${count(answer.total)}` : count(answer.total));
    this.fill(answer.items);
    this.parts.more.hidden = true;
    this.parts.shuffle.hidden = answer.total <= answer.items.length;
  }

  async showNeighbors(id) {
    const started = performance.now();
    const answer = await this.call(`v1/items/${id}/neighbors?k=${this.k}${this.whereParameter()}${this.order && `&${this.order}`}`);
    this.describeQuery({ name: answer.item.key, source: thumbnailOf(answer.item), ...answer.item });
    await this.results(answer.hits, started);
  }

  async showUpload(file) {
    const started = performance.now();
    const form = new FormData();
    form.append("files", file, file.name || "pasted image");
    form.append("k", String(this.k));
    if (this.where) form.append("where", this.where);
    for (const [name, value] of new URLSearchParams(this.order)) form.append(name, value);
    const [found] = (await this.call("v1/search", { method: "POST", body: form })).images;
    this.describeQuery({ name: found.name, source: URL.createObjectURL(file), width: found.width, height: found.height });
    await this.results(found.hits, started);
  }

  async results(hits, started) {
    const time = Math.max(1, Math.round(performance.now() - started));
    await this.counted;
    const close = !hits.length || hits[0].meaning !== "unrelated";
    this.title(close ? "Nearest images" : "Nothing close; the nearest are", `${hits.length} of ${count(this.total || hits.length)} · ${time} ms`);
    this.fill(hits);
    this.parts.shuffle.hidden = true;
    this.parts.more.hidden = hits.length < this.k || this.k >= MAX_K || hits.length >= this.total;
  }

  async call(route, options = {}) {
    const response = await fetch(route, { ...options, signal: this.request.signal });
    if (response.ok) return response.json();
    const answer = await response.json().catch(() => null);
    const detail = answer && typeof answer.detail === "string" ? answer.detail : "";
    throw new Refused(detail || PROXY_ANSWERS[response.status] || `The server answered ${response.status}.`);
  }

  async countImages() {
    const health = await fetch("healthz").then((response) => response.json()).catch(() => null);
    if (!health || typeof health.num_items !== "number") return;
    this.total = this.where ? await this.countMatching() : health.num_items;
    this.parts.facts.textContent = `${count(health.num_items)} · ${health.model}`;
    this.parts.facts.title = `Model fingerprint ${health.fingerprint}, run by ${health.backend}`;
  }

  async countMatching() {
    const answer = await fetch(`v1/items?limit=1${this.whereParameter()}`).then((response) => response.json()).catch(() => null);
    return answer && typeof answer.total === "number" ? answer.total : 0;
  }

  whereParameter() {
    return this.where ? `&where=${encodeURIComponent(this.where)}` : "";
  }

  describeQuery(query) {
    const { preview, drop, name, size } = this.parts;
    if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
    drop.classList.toggle("fk-filled", query !== null);
    drop.classList.remove("fk-unseen");
    preview.hidden = query === null;
    this.parts.query.hidden = this.parts.home.hidden = query === null;
    if (query === null) return preview.removeAttribute("src");
    preview.alt = `The image searched with: ${query.name}`;
    preview.onerror = () => drop.classList.add("fk-unseen"); // the server reads this format, but the browser does not
    preview.src = query.source;
    name.textContent = query.name;
    size.textContent = query.width ? `${query.width} × ${query.height} pixels` : "";
  }

  fill(items) {
    this.parts.grid.replaceChildren(...items.map(card));
  }

  title(text, status) {
    this.parts.title.textContent = text;
    this.parts.status.textContent = status;
  }

  complain(text) {
    this.parts.alert.textContent = text;
    this.parts.alert.hidden = !text;
  }

  complainOfFilter(text) {
    this.parts.filterAlert.textContent = text;
    this.parts.filterAlert.hidden = !text;
    this.parts.filter.setAttribute("aria-invalid", String(Boolean(text)));
  }

  toTop() {
    const heading = this.parts.title;
    const inside = this.page.contains(document.activeElement) || document.activeElement === document.body;
    // The focused card is gone; move the focus to the heading, where the results begin.
    if (inside && location.hash) heading.focus({ preventScroll: true });
    if (heading.getBoundingClientRect().top < 0) window.scrollTo({ top: 0, behavior: "instant" });
  }
}

class Refused extends Error {}

function card(item) {
  const shape = item.width && item.height ? item.width / item.height : 4 / 3;
  const image = make("img", { src: thumbnailOf(item), alt: item.key, loading: "lazy", decoding: "async", draggable: false });
  const button = make("button", { type: "button", className: "fk-card" }, image);
  button.dataset.id = item.id;
  const [folder, name] = split(item.key);
  const caption = make("span", { className: "fk-caption" }, make("span", { className: "fk-name", textContent: name }));
  if (folder) caption.append(make("span", { className: "fk-folder", textContent: folder }));
  button.append(caption);
  button.title = item.key;
  if (item.score === undefined) button.setAttribute("aria-label", `Search with ${item.key}`);
  else {
    const score = make("span", { className: "fk-score", textContent: item.score.toFixed(3) });
    score.style.setProperty("--score", Math.max(0, Math.min(1, item.score)));
    if (item.meaning === "copy") score.append(make("span", { className: "fk-meaning", textContent: "copy" }));
    if (item.meaning === "unrelated") button.classList.add("fk-unrelated");
    button.append(score);
    const meaning = item.meaning ? `, ${item.meaning}` : "";
    button.setAttribute("aria-label", `Search with ${item.key}, similarity ${item.score.toFixed(3)}${meaning}`);
  }
  const place = make("li", {}, button);
  place.style.setProperty("--shape", Math.min(WIDEST, Math.max(NARROWEST, shape)));
  return place;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function split(key) {
  const at = key.lastIndexOf("/");
  return at < 0 ? ["", key] : [key.slice(0, at), key.slice(at + 1)];
}

function thumbnailOf(item) {
  return item.thumbnail.replace(/^\//, "");
}

function count(number) {
  return `${number.toLocaleString("en")} image${number === 1 ? "" : "s"}`;
}

function firstImage(clipboard) {
  return [...(clipboard?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
