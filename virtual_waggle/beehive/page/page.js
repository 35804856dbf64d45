// SPDX-License-Identifier: Apache-2.0
// Nodes, a plot and last values, out of the data API.  All that comes from there is put into the page as text.
"use strict";

const MOST_LINES = 5000;  // of one answer; more than a page can show
const MOST_ROWS = 500;  // of a table
const MOST_SERIES = 6;  // of a plot
const POINTS = 300;  // of a series of a plot
const AGAIN = 30000;  // ms between two looks at the last values
const WELL = 300, LATE = 3600;  // seconds of silence
const SECONDS = {h: 3600, d: 86400};
const HEIGHT = 300, LEFT = 64, RIGHT = 12, TOP = 12, BOTTOM = 36;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "14 4", "4 4"];  // so that colours alone tell nothing

const at = id => document.getElementById(id);
let last = [];  // the last value of each series
let cut = false;  // there are more of them than we read
let plots = 0;  // counts plots begun, so that one that was overtaken is not shown

function make(name, text, kind) {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
}

function draw(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
}

// The measurements that fit a query, MOST_LINES at most; [measurements, whether there were more].
async function read(query) {
    const answer = await fetch("/api/v1/query", {method: "POST", body: JSON.stringify(query)});
    if (!answer.ok) throw new Error(await answer.text());
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    const found = [];
    let rest = "";
    for (;;) {
        const {done, value} = await reader.read();
        const lines = (rest + (done ? decoder.decode() : decoder.decode(value, {stream: true}))).split("\n");
        rest = lines.pop();
        for (const line of lines) {
            if (found.length === MOST_LINES) {
                reader.cancel();
                return [found, true];
            }
            const row = JSON.parse(line);
            row.time = Date.parse(row.timestamp.slice(0, 23) + "Z");
            found.push(row);
        }
        if (done) return [found, false];
    }
}

function shownTime(time) {
    return new Date(time).toISOString().slice(0, 19).replace("T", " ");
}

function shownAge(seconds) {
    if (seconds < 0) return "in the future";
    for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
        if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return `${Math.floor(seconds)} s ago`;
}

function shownNumber(number) {
    return Number.isInteger(number) && Math.abs(number) < 1e9 ? String(number) : number.toPrecision(6).replace(/\.?0+(?=$|e)/, "");
}

function shownValue(value) {
    if (typeof value === "number" && Number.isFinite(value) && !Number.isInteger(value)) return shownNumber(value);
    const text = String(value);
    return text.length > 200 ? text.slice(0, 200) + " …" : text;
}

function shownMeta(meta, without) {
    return Object.entries(meta).filter(([key]) => !without.includes(key)).map(([key, value]) => `${key}=${value}`).join("  ");
}

function nodeOf(row) {
    return row.meta.node || "";
}

function showNodes() {
    const nodes = new Map();
    for (const row of last) {
        const id = nodeOf(row);
        const node = nodes.get(id) || {id, vsn: "", time: 0, series: 0};
        node.series += 1;
        if (row.time >= node.time) {
            node.time = row.time;
            node.vsn = row.meta.vsn || node.vsn;
        }
        nodes.set(id, node);
    }
    const sorted = [...nodes.values()].sort((one, other) => (one.vsn + one.id).localeCompare(other.vsn + other.id));
    at("nodes").replaceChildren(...sorted.map(node => {
        const age = (Date.now() - node.time) / 1000;
        const [state, kind] = age < WELL ? ["well", "well"] : age < LATE ? ["late", "late"] : ["silent", "away"];
        const line = make("tr");
        const time = make("td", shownAge(age));
        time.title = shownTime(node.time) + " UTC";
        line.append(make("td", node.id || "(none)"), make("td", node.vsn), time, make("td", state, kind), make("td", node.series, "number"));
        return line;
    }));
    choose(at("node"), sorted.map(node => [node.id, node.vsn ? `${node.vsn} (${node.id})` : node.id || "(none)"]));
}

// Offer these [value, text], and keep what is chosen if it is among them.
function choose(select, offers) {
    const before = select.value;
    const options = offers.map(([value, text]) => {
        const option = make("option", text);
        option.value = value;
        return option;
    });
    select.replaceChildren(...options);
    if (offers.some(([value]) => value === before)) select.value = before;
}

function showNames() {
    const names = new Set(last.filter(row => nodeOf(row) === at("node").value && typeof row.value === "number").map(row => row.name));
    choose(at("name"), [...names].sort().map(name => [name, name]));
}

function showLast() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = row => {
        const text = `${row.name} ${row.value} ${shownMeta(row.meta, [])}`.toLowerCase();
        return words.every(word => text.includes(word));
    };
    const rows = last.filter(fits).sort((one, other) => one.name.localeCompare(other.name) || nodeOf(one).localeCompare(nodeOf(other)));
    at("last").replaceChildren(...rows.slice(0, MOST_ROWS).map(row => {
        const line = make("tr");
        const value = make("td", undefined, "value");
        if (row.name === "upload" && /^https?:\/\//.test(row.value)) {
            const link = make("a", row.meta.filename || row.value);
            link.href = row.value;
            link.rel = "noopener noreferrer";
            value.append(link);
        } else {
            value.textContent = shownValue(row.value);
        }
        line.append(make("td", row.name), value, make("td", shownTime(row.time)), make("td", row.meta.vsn || nodeOf(row)), make("td", shownMeta(row.meta, ["node", "vsn"]), "more"));
        return line;
    }));
    const more = rows.length > MOST_ROWS ? `, of which ${MOST_ROWS} are shown` : "";
    at("last-state").textContent = `${rows.length} series${more}${cut ? "; there are more than this page reads" : ""}.`;
}

async function showPlot() {
    const number = ++plots;
    const name = at("name").value, node = at("node").value, range = at("range").value;
    at("plot-state").textContent = name ? "Reading …" : "There is nothing to plot.";
    if (!name) {
        for (const id of ["plot", "legend", "plot-table"]) at(id).replaceChildren();
        return;
    }
    const seconds = parseInt(range) * SECONDS[range.slice(-1)];
    const end = Date.now(), begin = end - seconds * 1000;
    const filter = node ? {name, node} : {name};
    try {
        const [rows] = await read({start: "-" + range, filter, experimental_func: "mean", experimental_window: `${Math.max(1, Math.floor(seconds / POINTS))}s`});
        if (number !== plots) return;
        const series = new Map();
        for (const row of rows) {
            if (nodeOf(row) !== node || !Number.isFinite(row.value)) continue;
            const label = shownMeta(row.meta, ["node", "vsn", "host"]) || name;
            if (!series.has(label)) series.set(label, []);
            series.get(label).push(row);
        }
        plot(name, [...series.entries()], begin, end, seconds / POINTS * 1000);
    } catch (error) {
        if (number === plots) at("plot-state").textContent = `The data could not be read: ${error.message}`;
    }
}

function plot(name, series, begin, end, step) {
    const shown = series.slice(0, MOST_SERIES);
    const values = shown.flatMap(([, rows]) => rows.map(row => row.value));
    let least = Infinity, most = -Infinity;
    for (const value of values) {
        least = Math.min(least, value);
        most = Math.max(most, value);
    }
    if (!values.length) {
        at("plot-state").textContent = `There are no numbers of ${name} in this time.`;
        for (const id of ["plot", "legend", "plot-table"]) at(id).replaceChildren();
        return;
    }
    const told = `${name}: ${shown.length} series, ${values.length} points, from ${shownNumber(least)} to ${shownNumber(most)}.`;
    if (most - least < 1e-12 * Math.max(1, Math.abs(most))) {
        least -= Math.abs(least) / 10 || 1;
        most += Math.abs(most) / 10 || 1;
    }
    const width = Math.min(1000, Math.max(300, at("plot").clientWidth));
    const x = time => LEFT + (time - begin) / (end - begin) * (width - LEFT - RIGHT);
    const y = value => TOP + (most - value) / (most - least) * (HEIGHT - TOP - BOTTOM);
    const picture = draw("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": told});
    for (let part = 0; part <= 4; part++) {
        const value = least + (most - least) * part / 4;
        picture.append(draw("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value)}));
        picture.append(draw("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, shownNumber(value)));
    }
    for (let part = 0; part <= 3; part++) {
        const time = begin + (end - begin) * part / 3;
        const label = end - begin > 2 * 86400000 ? shownTime(time).slice(5, 10) : shownTime(time).slice(11, 16);
        const anchor = part === 0 ? "start" : part === 3 ? "end" : "middle";
        picture.append(draw("text", {x: x(time), y: HEIGHT - 12, "text-anchor": anchor}, label));
    }
    shown.forEach(([, rows], index) => {
        let path = "", before = -Infinity;
        for (const row of rows) {
            const lone = row.time - before > 5 * step;  // a gap is shown as one, and a point by itself as a dot
            path += `${lone ? "M" : "L"}${x(row.time).toFixed(1)} ${y(row.value).toFixed(1)}${lone ? "h.1" : ""}`;
            before = row.time;
        }
        picture.append(draw("path", {d: path, class: `s${index}`, "stroke-dasharray": DASHES[index], "stroke-linecap": "round"}));
    });
    at("plot").replaceChildren(picture);
    at("legend").replaceChildren(...shown.map(([label], index) => {
        const item = make("li");
        const sample = draw("svg", {viewBox: "0 0 28 12", "aria-hidden": "true"});
        sample.append(draw("path", {d: "M0 6h28", class: `s${index}`, "stroke-width": 3, "stroke-dasharray": DASHES[index]}));
        item.append(sample, label);
        return item;
    }));
    const table = shown.flatMap(([label, rows]) => rows.map(row => [row, label])).sort((one, other) => other[0].time - one[0].time);
    at("plot-table").replaceChildren(...table.slice(0, MOST_ROWS).map(([row, label]) => {
        const line = make("tr");
        line.append(make("td", shownTime(row.time)), make("td", shownNumber(row.value), "number"), make("td", label, "more"));
        return line;
    }));
    at("plot-state").textContent = told + (series.length > shown.length ? ` ${series.length - shown.length} series more are not shown.` : "");
}

async function refresh() {
    try {
        [last, cut] = await read({start: "-" + at("range").value, tail: 1});
        at("state").textContent = `As of ${shownTime(Date.now())} UTC.`;
    } catch (error) {
        at("state").textContent = `The data could not be read: ${error.message}`;
        return;
    }
    showNodes();
    showNames();
    showLast();
    await showPlot();
}

function on(id, event, work) {
    at(id).addEventListener(event, happened => {
        if (event === "submit") happened.preventDefault();
        work();
    });
}

on("range-form", "submit", refresh);
on("plot-form", "submit", showPlot);
on("search-form", "submit", showLast);
on("range", "change", refresh);
on("node", "change", () => { showNames(); showPlot(); });
on("name", "change", showPlot);
on("search", "input", showLast);
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, AGAIN);
