"use strict";
const root = document.documentElement, button = document.getElementById("theme");
const prefers = matchMedia("(prefers-color-scheme: dark)");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : prefers.matches;
const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
prefers.addEventListener("change", label);
button.hidden = false;
label();
