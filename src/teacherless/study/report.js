"use strict";
(() => {
  const all = (q, e = document) => [...e.querySelectorAll(q)];
  // Folds: open without this script and in print.
  const folds = all("details[data-fold]");
  folds.forEach((d) => { d.open = false; });
  addEventListener("beforeprint", () => folds.forEach((d) => { d.open = true; }));

  const button = (text, act) => {
    const b = document.createElement("button");
    b.type = "button"; b.textContent = text; b.addEventListener("click", () => act(b));
    return b;
  };
  const copy = async (text, b) => {
    const was = b.textContent;
    try { await navigator.clipboard.writeText(text); }
    catch {
      const t = document.createElement("textarea");
      t.value = text; document.body.append(t); t.select(); document.execCommand("copy"); t.remove(); b.focus();
    }
    b.textContent = "copied"; setTimeout(() => { b.textContent = was; }, 1500);
  };
  all("table[data-tools]").forEach((table) => {
    const cells = () => all("tr", table).map((r) => all("th,td", r).map((c) => c.dataset.text ?? c.textContent.trim()));
    const csv = () => cells().map((r) => r.map((c) => /^[\d,]+$/.test(c) ? c.replaceAll(",", "") : /[",\n]/.test(c) ? `"${c.replaceAll('"', '""')}"` : c).join(",")).join("\n");
    const md = () => {
      const [head, ...rest] = cells().map((r) => `| ${r.map((c) => c.replaceAll("|", "\\|")).join(" | ")} |`);
      return [head, `|${all("thead th", table).map((_, i) => i ? "---:" : "---").join("|")}|`, ...rest].join("\n");
    };
    const tools = document.createElement("p");
    tools.className = "tools";
    tools.append(button("copy as CSV", (b) => copy(csv(), b)), button("copy as Markdown", (b) => copy(md(), b)));
    table.parentElement.before(tools);
    all("thead th", table).forEach((th, i) => {
      const text = th.textContent.trim();
      th.dataset.text = text; th.textContent = "";
      th.append(button(text, () => {
        const up = th.getAttribute("aria-sort") === "descending";
        all("th", th.parentElement).forEach((o) => o.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (r) => { const t = r.children[i].textContent.replaceAll(",", ""); return t === "" || isNaN(t) ? t : +t; };
        const order = (a, b) => {
          const x = value(a), y = value(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          const c = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
          return up ? c : -c;
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort(order));
      }));
    });
  });
  all("pre[data-copy]").forEach((pre) => pre.after(button("copy", (b) => copy(pre.textContent.trim(), b))));
  // Reading a curve: pointer, finger, or arrow keys.
  all("figure[data-reads]").forEach((figure) => {
    const { places, epochs, reads } = JSON.parse(figure.dataset.reads);
    const svg = figure.querySelector("svg"), rule = svg.querySelector(".rule"), out = figure.querySelector("output");
    let at = places.length - 1;
    const read = (i) => {
      at = Math.max(0, Math.min(places.length - 1, i));
      rule.setAttribute("d", `M${places[at]} 10V206`);
      out.textContent = `epoch ${epochs[at]}: ` + Object.entries(reads).map(([n, v]) => `${n} ${v[at] ?? "-"}`).join(", ");
    };
    const point = (e) => {
      const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) * 420 / box.width;
      read(places.reduce((best, p, i) => Math.abs(p - x) < Math.abs(places[best] - x) ? i : best, 0));
    };
    svg.tabIndex = 0;
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("focus", () => read(at));
    svg.addEventListener("keydown", (e) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1 }[e.key];
      if (to !== undefined) { e.preventDefault(); read(to); }
    });
  });
})();
