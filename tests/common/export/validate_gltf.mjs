// Prints the Khronos validator's report on a glTF file as JSON: node validate_gltf.mjs FOLDER FILE
// FOLDER: where `npm install --prefix FOLDER gltf-validator` put it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [folder, path] = process.argv.slice(2);
const validator = createRequire(join(resolve(folder), "package.json"))("gltf-validator");
const { issues, info } = await validator.validateBytes(new Uint8Array(readFileSync(path)), { maxIssues: 20 });
console.log(JSON.stringify({ issues, info }));
