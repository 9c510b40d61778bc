// A chat with the served model. Nothing is kept but on this page, and all texts are put in as text.
"use strict";
const CASE_MS = 5000;
const form = document.getElementById("ask-form");

function show(template, text) {
  const part = document.getElementById(template).content.cloneNode(true);
  part.querySelector("pre").textContent = text;
  document.getElementById("talk").append(part);
  return document.getElementById("talk").lastElementChild;
}

function showAnswer(answer) {
  const { decision, rule, probabilities, escalated } = answer.aegis;
  const part = show("answered", answer.choices[0].message.content);
  part.querySelector(".decision").textContent = decision;
  part.querySelector(".rule").textContent = rule;
  for (const [name, chance] of Object.entries(probabilities)) {
    const place = part.querySelector(`[data-chance="${CSS.escape(name)}"]`);
    place.textContent = chance.toFixed(2);
    place.nextElementSibling.value = chance;
  }
  if (escalated) {
    const id = answer.id.replace("chatcmpl-", "");
    part.querySelector(".case").hidden = false;
    part.querySelector(".case code").textContent = id.slice(0, 8);
    waitForPerson(id, part.querySelector(".case [role=status]"));
  }
}

async function waitForPerson(id, status) {
  try {
    const found = await (await fetch(`/escalations/${id}`)).json();
    if (found.state === "resolved") {
      status.textContent = "";
      show("person", found.answer);
      return;
    }
  } catch {
    // The server is away for a moment; the case stays.
  }
  setTimeout(waitForPerson, CASE_MS, id, status);
}

if (form !== null) {
  const question = document.getElementById("question"), waiting = document.getElementById("waiting");
  const problem = document.getElementById("problem"), button = form.querySelector("button");
  const messages = [];
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    const text = question.value;
    button.disabled = true;
    waiting.hidden = false;
    problem.hidden = true;
    try {
      const answer = await fetch("/v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: form.dataset.model, messages: [...messages, { role: "user", content: text }] }),
      });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error.message);
      messages.push({ role: "user", content: text }, body.choices[0].message);
      show("asked", text);
      showAnswer(body);
      question.value = "";
    } catch (error) {
      const lost = document.getElementById("connection").dataset.lost;
      problem.textContent = error instanceof TypeError ? `${lost} ${new Date().toLocaleTimeString()}.` : error.message;
      problem.hidden = false;
    }
    button.disabled = false;
    waiting.hidden = true;
    question.focus();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
