// node netron.mjs FOLDER MODEL: reads the graph with the Netron in FOLDER, and prints what it shows.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, model] = process.argv.slice(2);
const load = (id) => import(pathToFileURL(path.join(folder, `${id}.js`)).href);
const raise = (error) => { throw error; };
const { BinaryStream } = await load('./base');
const { ModelFactoryService } = await load('./view');

const host = { event: () => {}, exception: raise, require: load };
const context = {
    identifier: path.basename(model),
    stream: new BinaryStream(fs.readFileSync(model)),
    require: load,
    asset: (file) => fs.readFileSync(path.join(folder, file), 'utf-8'),
    error: raise,
};
const { format, modules } = await new ModelFactoryService(host).open(context);
const inputs = modules[0].inputs.map((input) => input.name);
console.log(JSON.stringify({ format, inputs, nodes: modules[0].nodes.length }));
