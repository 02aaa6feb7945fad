// What the page does without its server: it holds the radiograph, shows maps, sets their opacity, and makes downloads.
(() => {
  "use strict";
  const chosen = { file: null, sample: null };
  const INK = "#222222";

  // The radiograph stays in the browser, and goes to the server with each question

  function choose(file, sample) {
    const drop = document.querySelector(".tier-drop");
    const limit = Number(drop.dataset.max);
    const tooLarge = file !== null && file.size > limit;
    chosen.file = tooLarge ? null : file;
    chosen.sample = sample;
    const told = drop.querySelector(".tier-file");
    told.classList.toggle("tier-refused", tooLarge);
    if (tooLarge) told.textContent = `${file.name} is larger than ${limit / 2 ** 20} MiB: export it as a smaller PNG.`;
    else if (file !== null) told.textContent = `${file.name} (${(file.size / 1000).toFixed(0)} kB)`;
    else told.textContent = "A synthetic radiograph is chosen. Drop a file to replace it.";
    drop.classList.toggle("tier-chosen", chosen.file !== null);
    for (const button of document.querySelectorAll(".tier-sample"))
      button.setAttribute("aria-pressed", String(sample !== null && Number(button.dataset.sample) === sample));
  }

  function base64(file) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
  }

  // Called by the button "Ask": the image of the question, see evaluation_tier/app/questions.py
  window.tierImage = async () => {
    if (chosen.sample !== null) return JSON.stringify({ sample: chosen.sample });
    if (chosen.file === null) return "";
    try {
      return JSON.stringify({ name: chosen.file.name, content: await base64(chosen.file) });
    } catch {
      return JSON.stringify({ name: chosen.file.name, content: "" }); // moved or deleted since it was chosen
    }
  };

  // Maps

  function show(model, button) {
    for (const other of model.querySelectorAll("[data-layer]"))
      other.setAttribute("aria-pressed", String(other === button));
    model.querySelector(".tier-layer").src = button.dataset.layer;
    model.querySelector(".tier-caption").textContent = button.dataset.caption;
    model.querySelector(".tier-low").textContent = `against ${button.dataset.sign}: −${button.dataset.limit}`;
    model.querySelector(".tier-high").textContent = `${button.dataset.limit}: for ${button.dataset.sign}`;
  }

  // The same finding or word in all models; a model that splits words differently shows the finding
  function select(button) {
    const row = button.closest(".tier-row").dataset.row;
    for (const model of button.closest(".tier-models").querySelectorAll(".tier-model")) {
      if (model.contains(button)) {
        show(model, button);
        continue;
      }
      const layers = [...model.querySelectorAll("[data-layer]")];
      const same = layers.find((other) => other.dataset.key === button.dataset.key);
      const found = same ?? layers.find((other) => other.dataset.key === row);
      if (found) show(model, found);
    }
  }

  function setOpacity(slider) {
    for (const layer of slider.closest(".tier-answer").querySelectorAll(".tier-layer"))
      layer.style.opacity = slider.value / 100;
  }

  // A new answer shows the map of its first finding
  new MutationObserver(() => {
    for (const answer of document.querySelectorAll(".tier-answer:not([data-shown])")) {
      answer.dataset.shown = "";
      const first = answer.querySelector("[data-layer]");
      if (first) select(first);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  // Downloads

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  function baseName(answer) {
    return answer.dataset.image.replace(/\.[^.]*$/, "") || "radiograph";
  }

  function breakLines(context, lines, width) {
    return lines.flatMap((line) => {
      const broken = [""];
      for (const word of line.split(/\s+/)) {
        const longer = `${broken.at(-1)} ${word}`.trim();
        if (broken.at(-1) && context.measureText(longer).width > width) broken.push(word);
        else broken[broken.length - 1] = longer;
      }
      return broken;
    });
  }

  // The picture as it is shown, at least 512 pixels wide, with caption, score, colour bar and note under it
  function savePicture(model) {
    const answer = model.closest(".tier-answer");
    const [grey, layer] = [model.querySelector(".tier-grey"), model.querySelector(".tier-layer")];
    const pressed = model.querySelector('[data-layer][aria-pressed="true"]');
    const width = Math.max(grey.naturalWidth, 512);
    const height = Math.round((grey.naturalHeight * width) / grey.naturalWidth);
    const size = Math.max(13, Math.round(width / 50));
    const lines = [`${answer.dataset.image}, model ${model.querySelector("h3").textContent}`];
    if (pressed) {
      const score = pressed.closest(".tier-row").querySelector(".tier-score").textContent;
      lines.push(`${pressed.dataset.caption} (score ${score})`);
    }
    lines.push(answer.dataset.note);

    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d");
    const font = `${size}px system-ui, sans-serif`;
    context.font = font;
    const broken = breakLines(context, lines, width - 2 * size);
    [canvas.width, canvas.height] = [width, height + Math.round(1.5 * size * (broken.length + 2))];
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(grey, 0, 0, width, height);
    context.font = font;
    context.fillStyle = INK;
    let at = height + 1.5 * size;
    if (pressed) {
      context.globalAlpha = Number(layer.style.opacity);
      context.drawImage(layer, 0, 0, width, height);
      context.globalAlpha = 1;
      const low = model.querySelector(".tier-low").textContent;
      const start = 2 * size + context.measureText(low).width;
      context.fillText(low, size, at);
      context.drawImage(model.querySelector(".tier-colours"), start, at - 0.8 * size, width / 5, 0.9 * size);
      context.fillText(model.querySelector(".tier-high").textContent, start + width / 5 + size, at);
      at += 1.5 * size;
    }
    for (const line of broken) {
      context.fillText(line, size, at);
      at += 1.5 * size;
    }
    canvas.toBlob((blob) => save(blob, `${baseName(answer)}.png`), "image/png");
  }

  // Events

  document.addEventListener("click", (event) => {
    const find = (selector) => event.target.closest?.(selector);
    if (find("[data-layer]")) select(find("[data-layer]"));
    else if (find(".tier-sample")) choose(null, Number(find(".tier-sample").dataset.sample));
    else if (find(".tier-png")) savePicture(find(".tier-model"));
    else if (find(".tier-json")) {
      const answer = find(".tier-answer");
      const text = answer.querySelector(".tier-data").textContent;
      save(new Blob([text], { type: "application/json" }), `${baseName(answer)}.json`);
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches(".tier-opacity input")) setOpacity(event.target);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches(".tier-drop input") && event.target.files.length) {
      choose(event.target.files[0], null);
      event.target.value = ""; // so that the same file can be chosen again after it has changed
    }
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // a file beside the field must not replace the page
      const drop = document.querySelector(".tier-drop");
      drop?.classList.toggle("tier-over", kind === "dragover");
      if (kind === "drop" && drop && event.dataTransfer.files.length) choose(event.dataTransfer.files[0], null);
    });
})();
