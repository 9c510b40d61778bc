// Look at this page again every few seconds and put what has changed in its place.
"use strict";
const LOOK_MS = 2000, LONGEST_MS = 15000;
const connection = document.getElementById("connection");
let lostAt = null, waitMs = LOOK_MS;

function place(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other === null || other.innerHTML === part.innerHTML) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.replaceChildren(...other.childNodes);
    if (focused !== null)
      for (const link of part.querySelectorAll("a[href]"))
        if (link.getAttribute("href") === focused) link.focus();
  }
  // A run that has vanished, or come back, is another page.
  const main = document.getElementById("content"), now = fresh.getElementById("content");
  const parts = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.id).join();
  if (parts(main) !== parts(now)) main.replaceChildren(...now.childNodes);
}

async function look() {
  if (!document.hidden && document.querySelector("[data-live]") !== null) {
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(LONGEST_MS) });
      place(new DOMParser().parseFromString(await answer.text(), "text/html"));
      if (lostAt !== null) {
        connection.textContent = connection.dataset.again;
        setTimeout(() => { if (lostAt === null) connection.hidden = true; }, 5000);
      }
      lostAt = null;
      waitMs = LOOK_MS;
    } catch {
      lostAt ??= new Date();
      waitMs = Math.min(2 * waitMs, LONGEST_MS);
      connection.textContent = `${connection.dataset.lost} ${lostAt.toLocaleTimeString()}. ${connection.dataset.trying}`;
      connection.hidden = false;
    }
  }
  setTimeout(look, waitMs);
}
setTimeout(look, LOOK_MS);
