// Keys for the buttons and choices that name one, and no text lost where the server is gone.
"use strict";
const writing = (target) => target.matches("textarea, input:not([type=radio])");

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const form = document.getElementById("answer-form");
    if (form !== null) form.requestSubmit();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (target === null) return;
  event.preventDefault();
  target.click();
  target.focus();
});

for (const form of document.forms)
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const banner = document.getElementById("connection");
    try {
      await fetch("/ui/review", { method: "HEAD" });
      form.submit();
    } catch {
      banner.textContent = `${banner.dataset.lost} ${new Date().toLocaleTimeString()}.`;
      banner.hidden = false;
    }
  });
