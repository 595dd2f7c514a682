"use strict";
// The trace viewer and the sortable table. Whatever a model wrote goes into the page through textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 50;

  // What is seen is this state and nothing else; it is also what the address of the page holds after "#".
  const state = { method: "", show: "all", q: "", trace: "", beside: "", sort: "" };
  let found = [];
  let page = 0;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const keyOf = (method, problem, sample) => `${method}/${problem}/${sample}`;
  const nameOf = (trace) =>
    [data.methods[trace.method].name, data.problems[trace.problem].id, trace.sample].map(encodeURIComponent).join("/");
  const byKey = new Map(data.traces.map((trace) => [keyOf(trace.method, trace.problem, trace.sample), trace]));
  const byName = new Map(data.traces.map((trace) => [nameOf(trace), trace]));
  const longest = data.traces.reduce((most, trace) => Math.max(most, trace.tokens[0]), 1);
  const sampled = data.traces.some(({ sample }) => sample > 0);

  // The address.

  const readAddress = () => {
    for (const name of Object.keys(state)) state[name] = name === "show" ? "all" : "";
    for (const part of location.hash.slice(1).split("&")) {
      const [name, value = ""] = part.split(/=(.*)/s);
      if (!(name in state)) continue;
      try {
        // A trace's parts are encoded one by one, because a problem's id may hold a slash.
        state[name] = name === "trace" ? value : decodeURIComponent(value);
      } catch {
        state[name] = "";
      }
    }
    if (!byId("show").querySelector(`option[value="${CSS.escape(state.show)}"]`)) state.show = "all";
  };
  const writeAddress = () => {
    const parts = Object.entries(state)
      .filter(([name, value]) => value && !(name === "show" && value === "all"))
      .map(([name, value]) => `${name}=${name === "trace" ? value : encodeURIComponent(value)}`);
    history.replaceState(null, "", `#${parts.join("&")}`);
  };

  // The table.

  const table = byId("methods");
  const headings = [...table.tHead.rows[0].cells];
  const sortBy = (column, direction) => {
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const sign = direction === "descending" ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what has no value stands last either way
      return column === 1 ? sign * x.localeCompare(y) : sign * (Number(x) - Number(y));
    });
    table.tBodies[0].append(...rows);
    for (const heading of headings) heading.removeAttribute("aria-sort");
    headings[column].setAttribute("aria-sort", direction);
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      // Numbers are most interesting from the top, names and numbering from the start.
      const first = column < 2 ? "ascending" : "descending";
      const other = column < 2 ? "descending" : "ascending";
      const direction = heading.getAttribute("aria-sort") === first ? other : first;
      state.sort = `${heading.textContent}:${direction}`;
      sortBy(column, direction);
      writeAddress();
    });
  });
  const sortAsAddressed = () => {
    const [, name, direction] = state.sort.match(/^(.*):(ascending|descending)$/s) || [];
    const column = headings.findIndex((heading) => heading.textContent === name);
    if (column >= 0) sortBy(column, direction);
    else sortBy(0, "ascending");
  };
  for (const row of table.tBodies[0].rows) {
    const points = ["wide", "narrow"].map((picture) => byId(`${picture}-point-${row.dataset.number}`)).filter(Boolean);
    const both = (on) => {
      row.classList.toggle("hot", on);
      for (const point of points) for (const mark of point.querySelectorAll("use, path")) mark.classList.toggle("hot", on);
    };
    for (const element of [row, ...points]) {
      element.addEventListener("mouseenter", () => both(true));
      element.addEventListener("mouseleave", () => both(false));
    }
    for (const point of points) {
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = [...row.cells].slice(1, 5).map((cell, place) =>
        (place ? `${headings[place + 1].textContent} ` : "") + cell.innerText.replace(/\n/g, ", ")).join("\n");
      point.append(title);
    }
  }

  // Which traces are listed.

  const baselineOf = (trace) => byKey.get(keyOf(data.baseline, trace.problem, trace.sample));
  const shows = {
    all: () => true,
    right: (trace) => trace.right,
    wrong: (trace) => !trace.right,
    truncated: (trace) => trace.truncated,
    gained: (trace) => trace.right && baselineOf(trace)?.right === false,
    lost: (trace) => !trace.right && baselineOf(trace)?.right === true,
  };
  const haystack = new Map();
  const contains = (trace, needle) => {
    if (!haystack.has(trace)) {
      const { id, prompt } = data.problems[trace.problem];
      const parts = [id, prompt, trace.thinking.text, trace.answer.text, trace.extracted ?? ""];
      haystack.set(trace, parts.join("\n").toLowerCase());
    }
    return haystack.get(trace).includes(needle);
  };
  const find = () => {
    const method = data.methods.findIndex(({ name }) => name === state.method);
    const needle = state.q.toLowerCase();
    found = data.traces.filter((trace) =>
      (method < 0 || trace.method === method) && shows[state.show](trace) && (!needle || contains(trace, needle)));
  };

  const mark = (trace) => (trace.right ? "✓" : "✗");
  const listItem = (trace) => {
    const item = make("li");
    const button = make("button");
    button.type = "button";
    const verdict = make("span", trace.right ? "right" : "wrong", mark(trace));
    verdict.setAttribute("aria-label", trace.right ? "right" : "wrong");
    const sample = sampled ? ` · sample ${trace.sample}` : "";
    const bar = make("span", "bar");
    bar.style.width = `${(100 * trace.tokens[0]) / longest}%`;
    button.append(
      verdict,
      make("span", "id", data.problems[trace.problem].id + sample),
      make("span", "count", trace.tokens[0].toLocaleString("en") + (trace.truncated ? " ⊣" : "")),
      make("span", "of", data.methods[trace.method].name),
      bar,
    );
    if (trace.truncated) button.title = "cut off by the token limit";
    if (nameOf(trace) === state.trace) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choose(trace));
    item.append(button);
    return item;
  };
  const showList = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const from = page * PAGE;
    const listed = found.slice(from, from + PAGE);
    const focused = byId("list").contains(document.activeElement);
    byId("list").replaceChildren(...listed.map(listItem));
    byId("count").textContent = found.length
      ? `${(from + 1).toLocaleString("en")}–${(from + listed.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}`
      : "no trace fits";
    byId("earlier").disabled = page === 0;
    byId("later").disabled = page >= pages - 1;
    const current = byId("list").querySelector("[aria-current]");
    if (current) {
      if (focused) current.focus({ preventScroll: true }); // or the keys would leave the list after every step
      const list = byId("list");
      const [item, frame] = [current.getBoundingClientRect(), list.getBoundingClientRect()];
      if (item.top < frame.top || item.bottom > frame.bottom) list.scrollTop += item.top - frame.top - frame.height / 3;
    }
  };

  // One trace.

  // Where in a text a place in tokens lies is not known here; it is taken by its share of the tokens, then moved to
  // the next space so that no word is torn.
  const placeInText = ({ text, cut = [text.length, 0] }, share) => {
    const place = share * (text.length + cut[1]);
    let at = Math.round(place <= cut[0] ? place : Math.max(cut[0], place - cut[1]));
    const space = text.slice(at, at + 40).search(/\s/);
    if (space >= 0) at += space;
    const low = text.charCodeAt(at);
    return low >= 0xdc00 && low < 0xe000 ? at + 1 : at;
  };
  const textBlock = (className, part, marks, file) => {
    const block = make("div", `text ${className}`);
    block.tabIndex = 0;
    if (!part.text) block.append(make("span", "empty", "nothing"));
    const pieces = marks.map(({ at, node }) => ({ at, node }));
    if (part.cut) {
      const words = `${part.cut[1].toLocaleString("en")} characters are left out here; the whole text is in ${file}`;
      pieces.push({ at: part.cut[0], node: make("span", "cut", words) });
    }
    let from = 0;
    for (const { at, node } of pieces.sort((a, b) => a.at - b.at)) {
      block.append(part.text.slice(from, at), node);
      from = at;
    }
    block.append(part.text.slice(from));
    return block;
  };
  const traceView = (trace) => {
    const view = make("article");
    const method = data.methods[trace.method];
    const [thinking, answer] = trace.tokens;
    view.append(make("h3", "", method.name));

    const verdict = make("p", "verdict");
    verdict.append(make("span", trace.right ? "right" : "wrong", `${mark(trace)} ${trace.right ? "right" : "wrong"}`), ": ");
    if (trace.extracted === null) verdict.append("no answer was found");
    else verdict.append("answered ", make("strong", "", trace.extracted));
    if (!trace.right || trace.extracted !== trace.expected) verdict.append(", expected ", make("strong", "", trace.expected));
    if (trace.grader) verdict.append(make("small", "", ` (${trace.grader})`));
    view.append(verdict);

    const [opened, closed] = trace.span;
    const whole = Math.max(1, trace.length, ...trace.events.map(([at]) => at));
    const timeline = make("div", "timeline");
    timeline.title = `${thinking} thinking tokens, then ${answer} answer tokens`;
    const part = make("span", "part");
    part.style.left = `${(100 * opened) / whole}%`;
    part.style.width = `${(100 * (closed - opened)) / whole}%`;
    timeline.append(part);
    view.append(timeline);

    const marks = { thinking: [], answer: [] };
    const events = make("ul", "events");
    for (const [at, kind, detail] of trace.events) {
      const what = Object.entries(detail).map(([name, value]) => `${name} ${value}`).join(", ");
      const chip = make("span", "chip", kind);
      chip.title = `after ${at} tokens, placed by share of tokens${what ? `: ${what}` : ""}`;
      const inThinking = at <= closed;
      const share = inThinking ? (at - opened) / Math.max(1, closed - opened) : (at - closed) / Math.max(1, whole - closed);
      const side = inThinking ? "thinking" : "answer";
      marks[side].push({ at: placeInText(trace[side], Math.min(1, Math.max(0, share))), node: chip });
      const go = () => {
        const box = chip.closest(".text");
        box.scrollTop += chip.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 3;
        chip.classList.add("flash");
        setTimeout(() => chip.classList.remove("flash"), 1200);
      };
      const tick = make("button", "tick");
      tick.type = "button";
      tick.tabIndex = -1;
      tick.setAttribute("aria-label", `${kind} after ${at} tokens`);
      tick.title = `${kind} after ${at} tokens`;
      tick.style.left = `${(100 * at) / whole}%`;
      tick.addEventListener("click", go);
      timeline.append(tick);
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.append(make("span", "at", at.toLocaleString("en")), make("span", "", kind), make("span", "what", what));
      button.addEventListener("click", go);
      item.append(button);
      events.append(item);
    }

    const heading = (name, tokens) => {
      const element = make("h4");
      element.append(make("span", "", name), make("span", "", `${tokens.toLocaleString("en")} tokens`));
      return element;
    };
    view.append(heading("thinking", thinking), textBlock("thinking", trace.thinking, marks.thinking, method.file));
    view.append(make("p", trace.truncated ? "stop bad" : "stop", trace.stop));
    view.append(heading("answer", answer), textBlock("answer", trace.answer, marks.answer, method.file));
    if (trace.events.length) view.append(make("h4", "", "what the method did, by response tokens written"), events);
    view.append(make("p", "cost", `${trace.cost}; seed ${trace.seed}`));
    return view;
  };
  const showDetail = () => {
    const detail = byId("detail");
    const trace = byName.get(state.trace);
    if (!trace) {
      detail.replaceChildren(make("p", "empty", state.trace ? "The trace that the address names is not in this page." : "No trace fits."));
      return;
    }
    const { id, prompt, gold } = data.problems[trace.problem];
    const problem = make("div", "problem");
    const heading = make("h4");
    heading.append(make("span", "", `${id}, sample ${trace.sample}`), make("span", "", `expected ${gold}`));
    problem.append(heading, make("p", "text", prompt));
    const other = data.methods.findIndex(({ name }) => name === state.beside);
    if (other < 0 || other === trace.method) {
      detail.replaceChildren(problem, traceView(trace));
    } else {
      const two = make("div", "two");
      const partner = byKey.get(keyOf(other, trace.problem, trace.sample));
      const missing = `${data.methods[other].name} has no trace of this problem and sample in this page.`;
      two.append(traceView(trace), partner ? traceView(partner) : make("p", "empty", missing));
      detail.replaceChildren(problem, two);
    }
    highlight(detail);
  };
  const highlight = (root) => {
    if (!window.Highlight) return;
    CSS.highlights.delete("found");
    const needle = state.q.toLowerCase();
    if (!needle) return;
    const ranges = [];
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode() && ranges.length < 500) {
      const text = walker.currentNode.data.toLowerCase();
      if (text.length !== walker.currentNode.data.length) continue; // places would be off
      for (let at = text.indexOf(needle); at >= 0 && ranges.length < 500; at = text.indexOf(needle, at + needle.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + needle.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };

  // Doing things.

  const choose = (trace) => {
    state.trace = nameOf(trace);
    page = Math.floor(found.indexOf(trace) / PAGE);
    writeAddress();
    showList();
    showDetail();
  };
  const step = (by) => {
    if (!found.length) return;
    const here = found.indexOf(byName.get(state.trace));
    choose(found[here < 0 ? 0 : Math.min(found.length - 1, Math.max(0, here + by))]);
  };
  const refilter = () => {
    find();
    page = 0;
    const here = found.indexOf(byName.get(state.trace));
    if (here < 0) state.trace = found.length ? nameOf(found[0]) : "";
    else page = Math.floor(here / PAGE);
    writeAddress();
    showList();
    showDetail();
  };
  const showAll = () => {
    readAddress();
    for (const [id, name] of [["method", "method"], ["show", "show"], ["search", "q"], ["beside", "beside"]]) byId(id).value = state[name];
    sortAsAddressed();
    find();
    if (!state.trace && found.length) state.trace = nameOf(found[0]);
    page = Math.floor(Math.max(0, found.indexOf(byName.get(state.trace))) / PAGE);
    showList();
    showDetail();
  };

  for (const [id, none] of [["method", "all"], ["beside", "no"]]) {
    byId(id).append(new Option(none, ""));
    for (const { name, held, traces } of data.methods) {
      byId(id).append(new Option(id === "method" && held < traces ? `${name} (${held} of ${traces})` : name, name));
    }
  }
  byId("method").addEventListener("change", (event) => { state.method = event.target.value; refilter(); });
  byId("show").addEventListener("change", (event) => { state.show = event.target.value; refilter(); });
  byId("beside").addEventListener("change", (event) => { state.beside = event.target.value; writeAddress(); showDetail(); });
  let waiting;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.q = event.target.value; refilter(); }, 150);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("earlier").addEventListener("click", () => { page -= 1; showList(); });
  byId("later").addEventListener("click", () => { page += 1; showList(); });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, .scroll")) return;
    const inList = event.target.closest("#list") !== null;
    const by = { ArrowRight: 1, ArrowLeft: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  window.addEventListener("hashchange", () => {
    showAll();
    if (state.trace && /(^#|&)(trace|method)=/.test(location.hash)) byId("viewer").scrollIntoView();
  });

  byId("filters").hidden = false;
  byId("panes").hidden = false;
  showAll();
  if (/(^#|&)trace=/.test(location.hash)) byId("viewer").scrollIntoView();
  document.documentElement.dataset.ready = "yes";
})();
