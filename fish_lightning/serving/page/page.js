// The page: pictures are sent one by one, a few at a time, and each gets its card.
const AT_ONCE = 4;
const TYPES = /^image\/(png|jpeg|webp|bmp|tiff)$/;
const at = (id) => document.getElementById(id);
const percent = (p) => p > 0.9995 ? "> 99.9 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
let token = sessionStorage.getItem("token");
let about;
let cards = [];
const queue = [];
let running = 0;

const headers = () => token ? { Authorization: `Bearer ${token}` } : {};

async function start() {
  const response = await fetch("about", { headers: headers() });
  if (response.status === 401) {
    at("access-error").textContent = token ? "Wrong token." : "";
    token = null;
    sessionStorage.removeItem("token");
    at("access").hidden = false;
    at("token").focus();
    return;
  }
  about = await response.json();
  at("access").hidden = true;
  at("input").hidden = false;
  at("model").hidden = false;
  const named = about.classes.length > 12 ? `${about.classes.length.toLocaleString("en")} classes` : about.classes.join(", ");
  at("model").textContent = `Model ${about.name} knows: ${named}.` +
    (about.calibrated ? "" : " Its probabilities are not calibrated.");
  at("limits").textContent = "PNG, JPEG, WebP, BMP or TIFF, up to " +
    `${Math.round(about.max_file_bytes / 1e6)} MB and ${Math.round(about.max_pixels / 1e6)} megapixels each`;
  at("heat-choice").hidden = !about.heat_maps;
}

function add(files) {
  const pictures = [...files];
  for (const file of pictures) {
    const card = at("card").content.firstElementChild.cloneNode(true);
    const part = (name) => card.querySelector(`.${name}`);
    card.find = part;
    card.file = file;
    part("name").textContent = file.name || "pasted picture";
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.onerror = () => image.removeAttribute("src"); // TIFF, which browsers do not show
    part("again").onclick = () => { send(card); at("status").focus(); };
    at("answers").append(card);
    cards.push(card);
    send(card);
  }
  at("clear").hidden = cards.length === 0;
}

function send(card) {
  card.classList.remove("failed", "unsure");
  card.find("verdict").textContent = "";
  card.find("verdict").hidden = true;
  card.classList.add("waiting");
  card.find("again").hidden = true;
  card.find("class").textContent = "…";
  queue.push(card);
  next();
}

async function next() {
  say();
  while (running < AT_ONCE && queue.length) {
    const card = queue.shift();
    running += 1;
    answer(card).finally(() => { running -= 1; next(); });
  }
}

async function answer(card) {
  try {
    if (card.file.size > about.max_file_bytes) throw new Error("This file is too large.");
    const body = new FormData();
    body.append("files", card.file, card.file.name || "picture");
    const heat = about.heat_maps && at("heat").checked;
    const response = await fetch(`predict?heat_map=${heat}`, { method: "POST", body, headers: headers() });
    const found = await response.json();
    if (response.status === 401) { await start(); }
    if (!response.ok) throw new Error(found.error.message.replace(/^file 1( \(.*?\))?: /, ""));
    show(card, found.predictions[0]);
  } catch (error) {
    card.classList.add("failed");
    card.find("bars").replaceChildren();
    card.find("class").textContent = error instanceof TypeError ? "The server is not responding." : sentence(error.message);
    card.find("again").hidden = false;
  }
  card.classList.remove("waiting");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function show(card, found) {
  const ranked = Object.entries(found.calibrated_probabilities ?? found.probabilities);
  const unsure = found.unknown ? "None of these" : found.uncertain ? "Uncertain" : "";
  card.classList.toggle("unsure", unsure !== "");
  card.find("verdict").hidden = !unsure;
  card.find("verdict").textContent = unsure;
  card.find("class").textContent = found.unknown ? `${found.class} is the nearest class` :
    found.uncertain ? `perhaps ${found.class}` : found.class;
  // Of an image of none of the classes, their probabilities say nothing.
  card.find("bars").replaceChildren(...ranked.slice(0, found.unknown ? 0 : 2).map(([name, p], place) => bar(name, p, place)));
  const rows = ranked.map(([name, p]) => {
    const row = document.createElement("tr");
    row.append(cell(name), cell(percent(p)));
    return row;
  });
  card.querySelector("tbody").replaceChildren(...rows);
  card.querySelector("details").hidden = ranked.length < 3;
  card.querySelector("img").alt = card.find("name").textContent;
  if (found.heat_map) {
    card.find("heat").src = found.heat_map;
    card.find("heat").alt = `Grad-CAM heat map for ${found.class}, in orange on the picture as the model sees it`;
  }
  card.find("heat").hidden = !(found.heat_map && at("heat").checked);
}

function cell(text) {
  const made = document.createElement("td");
  made.textContent = text;
  return made;
}

function bar(name, p, place) {
  const made = document.createElement("div");
  const length = document.createElement("i");
  const filled = document.createElement("b");
  filled.style.width = `${100 * p}%`;
  length.append(filled);
  const first = about.calibrated ? "calibrated probability" : "probability, not calibrated";
  for (const text of [place ? `runner-up: ${name}` : first, percent(p)]) {
    const span = document.createElement("span");
    span.textContent = text;
    made.append(span);
  }
  made.append(length);
  return made;
}

const told = (card) => ["name", "verdict", "class"].map((name) => card.find(name).textContent).filter(Boolean).join(": ");

function say() {
  const open = queue.length + running;
  const failed = cards.filter((card) => card.classList.contains("failed")).length;
  const done = cards.length - open;
  at("status").textContent = !cards.length ? "" : open ? `${done} of ${cards.length} pictures classified …` :
    cards.length === 1 ? told(cards[0]) :
    `${cards.length - failed} of ${cards.length} pictures classified` + (failed ? `, ${failed} failed` : "");
}

at("access").onsubmit = (event) => {
  event.preventDefault();
  token = at("token").value;
  sessionStorage.setItem("token", token);
  start();
};
for (const id of ["files", "camera"]) at(id).onchange = (event) => { add(event.target.files); event.target.value = ""; };
addEventListener("paste", (event) => {
  if (!about || event.target === at("token")) return;
  const pictures = [...event.clipboardData.files].filter((file) => TYPES.test(file.type));
  if (pictures.length) add(pictures);
  else at("status").textContent = "The clipboard has no picture.";
});
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && about) add(event.dataTransfer.files);
  });
}
at("heat").onchange = () => {
  for (const card of cards) {
    const ready = card.find("heat").hasAttribute("src");
    card.find("heat").hidden = !(ready && at("heat").checked);
    if (at("heat").checked && !ready && !card.classList.contains("failed") && !card.classList.contains("waiting")) send(card);
  }
};
at("clear").onclick = () => {
  queue.length = 0;
  for (const card of cards) URL.revokeObjectURL(card.querySelector("img").src);
  cards = [];
  at("answers").replaceChildren();
  at("clear").hidden = true;
  say();
  at("files").focus();
};
start();
