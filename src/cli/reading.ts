/**
 * The commands that read disks as a bundle of its own (scripts/build.mjs): without the mount, and with V8's code of what they run.
 */
import './signals.js'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { optimizeLate } from './late-optimizing.js'
import { startWith } from './start.js'

const SAMPLE_BYTES = 2 ** 20

type Run = (args: string[]) => Promise<number>

const COMMANDS: Record<string, () => Promise<{ run: Run }>> = {
  compare: () => import('./compare.js'),
  convert: () => import('./convert.js'),
  info: () => import('./info.js'),
  map: () => import('./map.js'),
}

/** Runs the commands on a small image. The build calls it, to keep V8's code of what they run. */
export async function loadAll(): Promise<void> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'vimgfs-build-'))
  const [raw, qcow2, copy] = ['raw', 'qcow2', 'copy'].map(name => path.join(folder, name)) as [
    string,
    string,
    string,
  ]
  try {
    fs.writeFileSync(raw, Buffer.alloc(SAMPLE_BYTES, 'x'))
    fs.truncateSync(raw, 2 * SAMPLE_BYTES)
    await runCommand(['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2])
    await runCommand(['convert', '-O', 'raw', qcow2, copy])
    await runCommand(['compare', '-q', '-f', 'raw', '-F', 'qcow2', raw, qcow2])
  } finally {
    fs.rmSync(folder, { recursive: true })
  }
}

async function runCommand([name, ...args]: string[]): Promise<number> {
  const { run } = await (COMMANDS[name as string] as () => Promise<{ run: Run }>)()
  return run(args)
}

export const start = (): void =>
  startWith(args => {
    // Not earlier: V8 takes its code only with the flags with which it was made.
    if (args[0] === 'convert') optimizeLate()
    return runCommand(args)
  })
