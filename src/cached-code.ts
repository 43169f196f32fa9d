/**
 * Runs a bundle with the code that V8 has made of it when vimgfs was built (scripts/build.mjs): reading the code takes less time
 * than compiling. Where the code is missing, or was made by another version of Node or for other options, V8 compiles as usual.
 *
 * V8 does not look whether code is whole, and of the bundle it compares the length only. So a checksum of both stands before the
 * code.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { Script } from 'node:vm'
import { crc32 } from 'node:zlib'

const placeOf = (name: string) => path.join(__dirname, `${name}.bundle.cjs`)
const codeOf = (name: string) => path.join(__dirname, `${name}.code`)

const CHECKSUM_BYTES = 4

/** Runs the bundle `name`, and returns what it exports. */
export function loadBundle(name: string): unknown {
  const source = readFileSync(placeOf(name))
  return run(name, compile(name, source, readCode(name, source)))
}

/** Makes the code of the bundle `name`. The build calls it. */
export async function makeCode(name: string): Promise<void> {
  const source = readFileSync(placeOf(name))
  const script = compile(name, source, undefined)
  const { loadAll } = run(name, script) as { loadAll?: () => Promise<unknown> }
  // The code includes all functions that have run by now.
  await loadAll?.()
  const code = script.createCachedData()
  const head = Buffer.alloc(CHECKSUM_BYTES)
  head.writeUInt32LE(checksum(source, code))
  writeFileSync(codeOf(name), Buffer.concat([head, code]))
}

/** Returns the code of a bundle, if there is any that was made of `source`. */
function readCode(name: string, source: Buffer): Buffer | undefined {
  let file: Buffer
  try {
    file = readFileSync(codeOf(name))
  } catch {
    return undefined
  }
  if (file.length < CHECKSUM_BYTES) return undefined
  const code = file.subarray(CHECKSUM_BYTES)
  return file.readUInt32LE(0) === checksum(source, code) ? code : undefined
}

const checksum = (source: Buffer, code: Buffer): number => crc32(code, crc32(source))

function compile(name: string, source: Buffer, cachedData: Buffer | undefined): Script {
  // Bundles are ASCII. So V8 keeps one byte for each character.
  const text = `(function (exports, require, module, __filename, __dirname) {${source.toString('latin1')}\n})`
  return new Script(text, { filename: placeOf(name), cachedData })
}

function run(name: string, script: Script): unknown {
  const filename = placeOf(name)
  const module = { exports: {} }
  const call = script.runInThisContext() as (...parts: unknown[]) => void
  call(module.exports, createRequire(filename), module, filename, __dirname)
  return module.exports
}
