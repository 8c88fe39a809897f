// The large files: fetched once, with progress, checked, and kept for a start without a network.
const CACHE = 'on-device-lab';

/** What a person reads when something cannot go on. */
export class Said extends Error {}

export const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);

/**
 * The bytes of a file {path, bytes, sha256} of page.json. onBytes(count) is called as they come.
 * Throws Said where the file is missing, too short or too long, or damaged.
 */
export async function load(file, onBytes = () => {}) {
    const url = `${file.path}?sha256=${file.sha256}`;
    const cache = self.caches ? await caches.open(CACHE) : null; // not over plain http
    const kept = await cache?.match(url);
    let bytes;
    try {
        bytes = await read(file, kept ?? (await request(file, url)), onBytes);
        await check(file, bytes);
    } catch (error) {
        if (kept) await cache.delete(url); // the next try fetches it
        throw error;
    }
    if (!kept) {
        const headers = { 'Content-Length': file.bytes, 'Content-Type': type(file.path) };
        // a full disk only means that it is fetched again
        await cache?.put(url, new Response(bytes, { headers })).catch(() => {});
    }
    return bytes;
}

/** Deletes what is kept of earlier versions of the page's large files. */
export async function forgetOthers(files) {
    if (!self.caches) return;
    const cache = await caches.open(CACHE);
    const wanted = new Set(files.map((file) => file.sha256));
    for (const { url } of await cache.keys()) {
        const hash = new URL(url).searchParams.get('sha256');
        if (hash && !wanted.has(hash)) await cache.delete(url);
    }
}

async function request(file, url) {
    let response;
    try {
        response = await fetch(url);
    } catch {
        throw new Said(
            `The file ${file.path} cannot be fetched. See that this device has a network, and ` +
            'that the page is still served; then load the page again.');
    }
    if (!response.ok) {
        throw new Said(
            `The file ${file.path} is not there (the server says ${response.status}). Whoever ` +
            "serves the page should write it again with './lab page'.");
    }
    return response;
}

async function read(file, response, onBytes) {
    const bytes = new Uint8Array(file.bytes); // at once: a growing one would take it twice
    let at = 0;
    try {
        const reader = response.body.getReader();
        for (let part; !(part = await reader.read()).done;) {
            const rest = Math.min(part.value.length, bytes.length - at);
            bytes.set(part.value.subarray(0, rest), at);
            at += part.value.length;
            onBytes(part.value.length);
        }
    } catch (error) {
        if (!(error instanceof TypeError)) throw error; // else the connection broke off
    }
    if (at !== file.bytes) {
        throw new Said(
            `The file ${file.path} came with ${megabytes(at)} of ${megabytes(file.bytes)} MB: ` +
            'the download broke off. Load the page again.');
    }
    return bytes;
}

async function check(file, bytes) {
    if (!self.crypto?.subtle) return; // not over plain http
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    const hex = Array.from(hash, (one) => one.toString(16).padStart(2, '0')).join('');
    if (hex !== file.sha256) {
        throw new Said(
            `The file ${file.path} is damaged: its SHA-256 is not the one in page.json. Load the ` +
            "page again; if that does not help, write it again with './lab page'.");
    }
}

const type = (path) => (path.endsWith('.wasm') ? 'application/wasm' : 'application/octet-stream');
