// Shows an audit's progress as its events come; the browser itself comes back where a stream breaks.
"use strict";

function row(list, index) {
  while (list.children.length <= index) {
    const item = document.createElement("li");
    const head = document.createElement("p");
    const name = document.createElement("b");
    const text = document.createElement("span");
    const bar = document.createElement("progress");
    const running = document.createElement("p");
    text.className = "text";
    running.className = "running";
    head.append(name, " ", text);
    item.append(head, bar, running);
    list.append(item);
  }
  return list.children[index];
}

function show(live, data) {
  const badge = live.querySelector(".state");
  badge.textContent = data.state;
  badge.className = "state " + data.state;
  const list = document.getElementById("progress");
  data.auditors.forEach((auditor, index) => {
    const item = row(list, index);
    item.querySelector("b").textContent = auditor.name;
    item.querySelector(".text").textContent = auditor.text;
    item.querySelector(".running").textContent = auditor.running;
    const bar = item.querySelector("progress");
    bar.max = auditor.total || 1;
    bar.value = auditor.done;
    bar.setAttribute("aria-label", auditor.name);
  });
  const unplanned = document.getElementById("unplanned");
  if (unplanned && data.auditors.length) unplanned.remove();
}

const live = document.getElementById("live");
if (live && live.dataset.events) {
  const source = new EventSource(live.dataset.events);
  source.addEventListener("progress", (event) => show(live, JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    show(live, JSON.parse(event.data));
    location.reload();
  });
}
