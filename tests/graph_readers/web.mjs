// node web.mjs MODEL: runs the graph on token 1 in onnxruntime-web, and prints the names of the
// inputs that it takes, and the logits.
import * as fs from 'node:fs';
import * as ort from 'onnxruntime-web';

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(process.argv[2]), {
    executionProviders: ['wasm'],
    logSeverityLevel: 3,
});
const feeds = {};
for (const { name, type, shape } of session.inputMetadata) {
    feeds[name] = name.startsWith('past_key_values')
        ? new ort.Tensor(type, new Float32Array(0), [1, shape[1], 0, shape[3]])
        : new ort.Tensor('int64', BigInt64Array.of(1n), [1, 1]);
}
const { logits } = await session.run(feeds, ['logits']);
console.log(JSON.stringify({ inputs: session.inputNames, logits: Array.from(logits.data) }));
