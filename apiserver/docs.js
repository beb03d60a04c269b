"use strict";
// Renders /openapi.json. Everything goes into the page as text, never as markup.

const el = (tag, props = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
};
const json = (v) => JSON.stringify(v, null, 2);

let doc;
const resolve = (s) => (s && s.$ref ? { name: s.$ref.split("/").pop(), ...doc.components.schemas[s.$ref.split("/").pop()] } : s || {});

function typeOf(schema) {
  const s = resolve(schema);
  const any = s.oneOf || s.anyOf;
  if (any && !s.properties) return any.map(typeOf).join(" or ");
  if (s.enum) return s.enum.map((v) => JSON.stringify(v)).join(", ");
  const types = [].concat(s.type || "any").filter((t) => t !== "null");
  return types.map((t) => (t === "array" ? `list of ${typeOf(s.items)}` : t === "object" && s.name ? s.name : t)).join(" or ");
}

// rows lists the fields of a schema, with those of nested objects below them.
function rows(schema, prefix = "", seen = []) {
  let s = resolve(schema);
  if (s.type === "array" || (Array.isArray(s.type) && s.type.includes("array"))) return rows(s.items, prefix + "[].", seen);
  if (s.oneOf) return rows(s.oneOf[0], prefix, seen);
  if (!s.properties || seen.includes(s.name)) return [];
  const path = s.name ? [...seen, s.name] : seen;
  return Object.entries(s.properties).filter(([, p]) => !p.deprecated).flatMap(([name, p]) => {
    const r = resolve(p);
    const notes = [p.description || r.description || "", r.format && `(${r.format})`, r.minimum !== undefined && `at least ${r.minimum}`,
      r.maximum !== undefined && `at most ${r.maximum}`].filter(Boolean).join(" ");
    const row = el("tr", {}, el("td", { textContent: prefix + name + ((s.required || []).includes(name) ? " *" : "") }),
      el("td", { className: "dim", textContent: typeOf(p) }), el("td", { textContent: notes }));
    return [row, ...rows(p, prefix + name + ".", path)];
  });
}

function table(list, heads) {
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col", textContent: h })))), el("tbody", {}, ...list));
}

function fields(title, schema, open) {
  const list = rows(schema);
  if (!list.length) return null;
  return el("details", { open }, el("summary", { textContent: title }), table(list, ["field", "type", ""]));
}

function exampleOf(media) {
  if (!media) return undefined;
  if (media.example !== undefined) return media.example;
  const first = Object.values(media.examples || {})[0];
  return first && first.value;
}

function curl(method, path, op) {
  const parts = ["curl -sS"];
  if (method !== "get") parts.push(`-X ${method.toUpperCase()}`);
  parts.push(`${location.origin}${path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase())}`);
  const body = exampleOf(op.requestBody && op.requestBody.content["application/json"]);
  if (body !== undefined) parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(body)}'`);
  return parts.join(" ");
}

// tryIt sends a GET that needs no parameters.
function tryIt(path) {
  const out = el("pre", { hidden: true });
  const button = el("button", { type: "button", textContent: "Send", onclick: async () => {
    out.hidden = false;
    out.textContent = "…";
    try {
      const r = await fetch(path);
      const text = await r.text();
      let body = text;
      try { body = json(JSON.parse(text)); } catch { /* it is text */ }
      out.textContent = `${r.status} ${r.statusText}\n${body}`;
    } catch (e) {
      out.textContent = String(e);
    }
  } });
  return el("div", {}, button, out);
}

function operation(path, method, op) {
  const body = op.requestBody && op.requestBody.content["application/json"];
  const params = (op.parameters || []).map((p) => el("tr", {}, el("td", { textContent: p.name + (p.required ? " *" : "") }),
    el("td", { className: "dim", textContent: `${p.in}, ${typeOf(p.schema)}` }), el("td", { textContent: p.description || "" })));
  const responses = Object.entries(op.responses).map(([status, r]) => {
    const media = Object.values(r.content || {})[0];
    const example = exampleOf(media);
    return el("details", {}, el("summary", { textContent: `${status} ${r.description || ""}` }),
      status < "300" && media ? fields("Fields", media.schema, false) : null,
      example !== undefined ? el("pre", { textContent: typeof example === "string" ? example : json(example) }) : null);
  });
  return el("section", { className: "operation", id: op.operationId },
    el("h3", {}, el("span", { className: `method ${method}`, textContent: method.toUpperCase() }), el("code", { textContent: path })),
    el("div", { textContent: op.summary }), op.description ? el("p", { textContent: op.description.replaceAll("`", "") }) : null,
    params.length ? el("div", {}, el("h4", { textContent: "Parameters" }), table(params, ["name", "type", ""])) : null,
    body ? el("div", {}, el("h4", { textContent: "Body" }), fields("Fields", body.schema, true)) : null,
    path === "/ws" ? null : el("div", {}, el("h4", { textContent: "Example" }), el("pre", { textContent: curl(method, path, op) })),
    method === "get" && !path.includes("{") && path !== "/ws" ? tryIt(path) : null,
    el("h4", { textContent: "Answers" }), ...responses);
}

async function main() {
  const box = document.getElementById("operations");
  try {
    const r = await fetch("/openapi.json");
    if (!r.ok) throw new Error(`${r.status} ${r.statusText}`);
    doc = await r.json();
  } catch (e) {
    box.replaceChildren(el("p", { role: "alert", textContent: `The document could not be loaded: ${e.message}` }));
    return;
  }
  document.querySelector("h1").textContent = `${doc.info.title} API ${doc.info.version}`;
  document.getElementById("about").append(...doc.info.description.split("\n\n").map((p) => el("p", { textContent: p.replaceAll("`", "") })));
  const all = Object.entries(doc.paths).flatMap(([path, item]) => ["get", "post", "put", "delete"].filter((m) => item[m]).map((m) => [path, m, item[m]]));
  const links = [];
  box.replaceChildren();
  for (const tag of doc.tags) {
    const mine = all.filter(([, , op]) => op.tags.includes(tag.name));
    box.append(el("h2", { textContent: tag.name }), el("p", { className: "dim", textContent: tag.description || "" }), ...mine.map((o) => operation(...o)));
    document.getElementById("index").append(el("h2", { textContent: tag.name }), ...mine.map(([path, method, op]) => {
      const a = el("a", { href: `#${op.operationId}` }, el("span", { className: `method ${method}`, textContent: method.toUpperCase() }), path);
      links.push([a, `${method} ${path} ${op.summary}`.toLowerCase(), op.operationId]);
      return a;
    }));
  }
  document.getElementById("filter").addEventListener("input", (e) => {
    const want = e.target.value.toLowerCase();
    for (const [a, text, id] of links) {
      a.hidden = document.getElementById(id).hidden = !text.includes(want);
    }
  });
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
main();
