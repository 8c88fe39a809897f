// What a person sees and touches. The model works in worker.js.
import { drawForm, readForm } from './form.js';

const at = (id) => document.getElementById(id);
const options = new URLSearchParams(location.search);
const MARK = 'loading'; // in the browser's memory while the model is loaded
let worker;
let page;

begin().catch((error) => fail(error.said ?? `The page could not start: ${error.message}`));

async function begin() {
    const found = await fetch('page.json').catch(() => null);
    if (!found?.ok) {
        const said = 'The file page.json cannot be fetched. See that the page is still served, ' +
            'and load it again.';
        throw Object.assign(new Error(), { said });
    }
    page = await found.json();
    at('model').textContent = page.name;
    for (const name of ['none', ...Object.keys(page.adapters)]) {
        at('adapter').add(new Option(name === 'none' ? 'none (the model as it is)' : name, name));
    }
    at('adapter').onchange = () => { at('question').value = page.examples[at('adapter').value]; };
    at('adapter').value = Object.keys(page.adapters)[0] ?? 'none';
    at('adapter').onchange();
    at('form').onsubmit = ask;
    at('question').onkeydown = (event) => {
        if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) ask(event);
    };
    at('stop').onclick = () => worker.postMessage({ stop: true });
    const gb = navigator.deviceMemory; // a browser says at most 8, and some say nothing
    if (gb && gb * 1000 < page.memory_mb) {
        return fail(
            `This device has too little memory for the model: the browser says ${gb} GB, and it ` +
            `needs about ${page.memory_mb} MB. Open the page on a larger device.`);
    }
    if (localStorage.getItem(MARK)) {
        note('The last time, this page was closed while it loaded the model. If a phone closes ' +
            'it again, its memory is too small.');
    }
    localStorage.setItem(MARK, 'yes');
    keepForOffline();
    const device = options.get('device') ?? ((await hasGpu()) ? 'webgpu' : 'wasm');
    load(device);
}

function load(device) {
    const cores = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    const threads = Number(options.get('threads')) || cores;
    worker = new Worker('worker.js', { type: 'module' });
    worker.onmessage = ({ data }) => {
        if (data.failed && data.while === 'loading' && device === 'webgpu' && !options.has('device')) {
            worker.terminate(); // the processor can do what this GPU cannot
            return load('wasm');
        }
        hear(data);
    };
    worker.onerror = (event) => fail(
        `The page's program could not be started (${event.message ?? 'no reason given'}). Load ` +
        'the page again, or use a newer browser.');
    worker.postMessage({ load: { page, device, threads } });
}

async function hasGpu() {
    try {
        return Boolean(page.engines.webgpu && (await navigator.gpu?.requestAdapter()));
    } catch {
        return false;
    }
}

async function keepForOffline() {
    try {
        await navigator.serviceWorker.register('sw.js', { type: 'classic' });
        await navigator.serviceWorker.ready;
        at('offline').dataset.kept = 'yes';
    } catch {
        at('offline').dataset.kept = 'no'; // over plain http, or not allowed
    }
    sayOffline();
}

/** Once it is known, and the model is here. */
function sayOffline() {
    const { kept } = at('offline').dataset;
    if (!kept || at('form').hidden) return;
    at('offline').textContent = kept === 'yes'
        ? 'From now on the page needs no network.'
        : 'This address is not secure (plain http), so the page needs its server again next time.';
}

function hear(data) {
    if (data.progress) showProgress(data.progress);
    if (data.ready) ready(data.ready);
    if (data.token) show(data.token);
    if (data.done) {
        show(data.done);
        showWhole(data.done);
        const why = data.done.stopped ? '; stopped' : '; it reached its limit';
        if (!data.done.ended) at('speed').textContent += why;
        finish();
    }
    if (data.failed) fail(data.failed, data.while === 'answering');
}

function showProgress({ done, total, starting }) {
    at('progress').max = total;
    at('progress').value = done;
    const mb = (bytes) => Math.round(bytes / 1e6);
    at('state').textContent = starting
        ? 'Starting the model, some seconds ...'
        : `Loading the model: ${mb(done)} of ${mb(total)} MB`;
}

function ready({ device, threads, mb }) {
    localStorage.removeItem(MARK);
    at('loading').hidden = true;
    at('form').hidden = false;
    note('');
    const where = device === 'webgpu' ? 'the GPU' : `${threads} thread${threads > 1 ? 's' : ''}`;
    at('state').textContent = `Ready: ${mb} MB, on ${where} of this device.`;
    sayOffline();
    at('question').focus({ preventScroll: true });
}

function ask(event) {
    event.preventDefault();
    const question = at('question').value.trim();
    if (!question) return note('Type a question first.');
    if (at('ask').disabled) return;
    note('');
    at('asked').textContent = `${question} (adapter: ${at('adapter').value})`;
    at('answer').textContent = '';
    at('unfit').hidden = true;
    at('answer').setAttribute('aria-busy', 'true'); // read aloud when it is whole
    at('speed').textContent = 'The model reads the question ...';
    at('turn').hidden = false;
    at('ask').disabled = true;
    at('stop').disabled = false;
    worker.postMessage({ ask: {
        question, adapter: at('adapter').value, most: Number(options.get('limit')) || page.limit,
    } });
}

function show({ text, tokens, first, perSecond }) {
    at('answer').textContent = text.trim();
    at('speed').textContent = `${tokens} token${tokens === 1 ? '' : 's'}, first after ` +
        `${(first / 1000).toFixed(1)} s` + (perSecond ? `, ${perSecond.toFixed(1)} tokens/s` : '');
}

/** The whole answer: of an adapter that fills a form, drawn as one. */
function showWhole({ text, adapter, ids, tokens, first, perSecond }) {
    const schema = page.asked[adapter]?.schema;
    const form = schema && readForm(text, schema);
    if (form) at('answer').replaceChildren(drawForm(form, schema));
    at('unfit').hidden = !schema || Boolean(form);
    at('answer').dataset.done = JSON.stringify({ text, ids, tokens, first, perSecond });
}

function finish() {
    at('answer').setAttribute('aria-busy', 'false');
    at('ask').disabled = false;
    at('stop').disabled = true;
}

function note(text) {
    at('note').textContent = text;
    at('note').hidden = !text;
}

function fail(text, goesOn = false) {
    note(text);
    at('note').dataset.failed = 'yes';
    if (goesOn) {
        at('turn').hidden = !at('answer').textContent; // nothing was answered
        return finish();
    }
    at('loading').hidden = true;
    at('state').textContent = 'The model is not loaded.';
    localStorage.removeItem(MARK);
}
