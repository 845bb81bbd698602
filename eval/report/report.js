"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const changes = JSON.parse(byId("changes").textContent); // card id -> variant -> scorer -> change
  const list = document.querySelector(".cards");
  const cards = [...list.children];
  const controls = document.querySelector(".controls");
  const rank = ["category", "scorer", "variant", "count", "view", "changed"].map(byId);
  const [category, scorer, variant, count, view, changed] = rank;
  let shown = cards;

  document.documentElement.classList.add("js");
  controls.hidden = false;
  cards.forEach((card) => { card.querySelector(".compare").hidden = false; });

  // Largest change of a card in the chosen score, over all variants or in the chosen one.
  const size = (card) => {
    const all = Object.entries(changes[card.id] || {});
    const chosen = all.filter(([name]) => !variant.value || name === variant.value);
    return Math.max(0, ...chosen.map(([, values]) => values.sizes[scorer.value] ?? 0));
  };
  const textChanged = (card) => {
    const all = Object.entries(changes[card.id] || {});
    return all.some(([name, values]) => (!variant.value || name === variant.value) && values.text);
  };

  function arrange() {
    const sizes = new Map(cards.map((card) => [card, size(card)]));
    const kept = cards.filter((card) =>
      (!category.value || card.dataset.category === category.value)
      && (!changed.checked || textChanged(card)));
    kept.sort((a, b) => sizes.get(b) - sizes.get(a)); // stable: equal ones keep the page's order
    shown = kept.slice(0, Number(count.value) || kept.length);
    const visible = new Set(shown);
    cards.forEach((card) => { card.hidden = !visible.has(card); });
    list.append(...shown);
    shown.forEach((card) => {
      card.querySelector(".change").replaceChildren(
        `change in ${scorer.value} `, Object.assign(document.createElement("b"),
          { textContent: Number(sizes.get(card).toPrecision(3)).toString() }));
    });
    list.className = "cards " + view.value;
    byId("shown").textContent = `${shown.length} of ${cards.length} prompts`;
  }
  controls.addEventListener("input", arrange);
  controls.addEventListener("submit", (event) => event.preventDefault());

  // The lightbox: reference, one variant and their difference, side by side.
  const box = byId("lightbox");
  const state = { card: null, variant: 1, flipped: false };
  const figures = () => [...state.card.querySelectorAll(".row figure")];

  function picture(target, figure, kind) {
    const source = figure.querySelector("img." + kind);
    if (source) { target.src = source.src; target.alt = source.alt; }
    return Boolean(source);
  }
  function draw() {
    const all = figures();
    state.variant = Math.min(state.variant, all.length - 1);
    const figure = all[state.variant];
    const texts = state.card.querySelector(".texts");
    byId("lightbox-title").textContent = state.card.querySelector("h3").textContent;
    byId("lightbox-texts").textContent = texts ? "expected " + texts.textContent.trim() : "";
    picture(byId("left"), all[0], "picture");
    picture(byId("middle"), state.flipped ? all[0] : figure, "picture");
    const lines = [...(state.flipped ? all[0] : figure).querySelector("figcaption").children];
    byId("middle-name").textContent = lines.map((one) => one.textContent.trim()).join(" · ");
    byId("right-figure").hidden = !picture(byId("right"), figure, "difference");
    byId("flip").setAttribute("aria-pressed", String(state.flipped));
    document.querySelector(".tabs").replaceChildren(...all.slice(1).map((one, index) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.textContent = one.dataset.variant;
      tab.setAttribute("aria-pressed", String(index + 1 === state.variant));
      tab.addEventListener("click", () => { state.variant = index + 1; draw(); });
      return tab;
    }));
  }
  function open(card, index) {
    Object.assign(state, { card, variant: Math.max(1, index), flipped: false });
    draw();
    box.showModal();
  }
  function step(by) {
    const place = shown.indexOf(state.card) + by;
    state.card = shown[(place + shown.length) % shown.length];
    draw();
  }
  function turn(by) {
    const last = figures().length - 1;
    if (last < 1) return;
    state.variant = 1 + (state.variant - 1 + by + last) % last;
    draw();
  }
  function flip() { state.flipped = !state.flipped; draw(); }

  list.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    const image = event.target.closest(".row img");
    if (event.target.closest(".compare")) open(card, 1);
    else if (image) {
      const place = [...card.querySelectorAll(".row figure")].indexOf(image.closest("figure"));
      open(card, place);
    }
  });
  byId("close").addEventListener("click", () => box.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("flip").addEventListener("click", flip);
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  box.addEventListener("close", () => state.card.querySelector(".compare").focus());
  box.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1),
      ArrowUp: () => turn(-1), ArrowDown: () => turn(1), r: flip, R: flip,
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  arrange();
})();
