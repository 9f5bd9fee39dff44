// Cells of the confusion matrix and the buttons above the gallery choose which of its pictures are shown.
(() => {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const status = document.getElementById("gallery-status");
  const pictures = [...gallery.querySelectorAll("figure")];
  const buttons = [...document.querySelectorAll("button[data-cell]")];
  const everything = buttons.find((button) => button.dataset.cell === "all");
  const belongs = (picture, cell) =>
    cell === "all" || picture.dataset.cell === cell || (cell === "wrong" && picture.classList.contains("wrong"));

  const choose = (button) => {
    const cell = button.dataset.cell;
    let shown = 0;
    for (const picture of pictures) {
      picture.hidden = !belongs(picture, cell);
      shown += !picture.hidden;
    }
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    status.textContent = `${button.dataset.what}: ${shown} of ${button.dataset.n} shown`;
    gallery.scrollTop = 0;
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const again = button.getAttribute("aria-pressed") === "true";
      choose(again ? everything : button);
      if (button.closest("table")) status.scrollIntoView({ block: "nearest" });
    });
  }
})();
