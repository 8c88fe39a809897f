// The service worker: it keeps the page's files, so that the page opens without a network.
// Files that are named by their SHA-256 never change, and come from the cache. All others come
// from the network, and from the cache where there is none.
const CACHE = 'on-device-lab';

self.addEventListener('install', (event) => {
    self.skipWaiting();
    event.waitUntil(keepShell());
});
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
    const { method, url } = event.request;
    if (method === 'GET' && new URL(url).origin === self.location.origin) {
        event.respondWith(answer(event.request));
    }
});

async function keepShell() {
    const page = await (await fetch('page.json', { cache: 'no-cache' })).json();
    const cache = await caches.open(CACHE);
    await cache.addAll(page.shell.map((path) => new Request(path, { cache: 'no-cache' })));
}

async function answer(request) {
    const cache = await caches.open(CACHE);
    const named = new URL(request.url).searchParams.has('sha256');
    const kept = await cache.match(request, { ignoreSearch: !named, ignoreVary: true });
    if (named && kept) return isolated(kept);
    try {
        const found = await fetch(request);
        // what is named by its hash is kept by who has checked it (files.js)
        if (found.ok && !named) await cache.put(request, found.clone());
        return isolated(found);
    } catch (error) {
        if (kept) return isolated(kept);
        throw error;
    }
}

// Several threads need these headers, which a plain host of files does not send.
function isolated(response) {
    const headers = new Headers(response.headers);
    headers.set('Cross-Origin-Opener-Policy', 'same-origin');
    headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
    const { status, statusText } = response;
    return new Response(response.body, { status, statusText, headers });
}
