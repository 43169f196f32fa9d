/** A persistent dirty bitmap, as QEMU shows it to who makes incremental backups. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import type { Test } from 'tap'
import { until } from '../support/mount.js'
import { run } from '../support/run.js'
import type { Kind } from './fsx-kinds.js'

type Bitmap = NonNullable<Kind['bitmap']>

export const addBitmap = (image: string, { name, bytes }: Bitmap): Promise<string> =>
  run('qemu-img', ['bitmap', '--add', '-g', String(bytes), image, name])

/** The units of the disk whose bit is set. */
export async function dirtyUnits(t: Test, image: string, bitmap: Bitmap): Promise<Set<number>> {
  const socket = `${image}.socket`
  const args = ['-f', 'qcow2', '--read-only', '-B', bitmap.name, '-k', socket, image]
  const server = spawn('qemu-nbd', args, { stdio: ['ignore', 'ignore', 'inherit'] })
  t.teardown(() => server.kill('SIGKILL'))
  const ended = once(server, 'close')
  await until(() => existsSync(socket))
  const context = `x-dirty-bitmap=qemu:dirty-bitmap:${bitmap.name}`
  const options = `driver=nbd,server.type=unix,server.path=${socket},${context}`
  const map = await run('qemu-img', ['map', '--output=json', '--image-opts', options])
  // It serves one client, and there was one.
  await ended
  const dirty = new Set<number>()
  for (const { start, length, data } of JSON.parse(map)) {
    // In this context, changed ranges are reported as having no data.
    if (data) continue
    for (let at = start; at < start + length; at += bitmap.bytes) dirty.add(at / bitmap.bytes)
  }
  return dirty
}

/** Units that differ although their bit is not set. */
export function unmarked(a: Buffer, b: Buffer, dirty: Set<number>, { bytes }: Bitmap): number[] {
  const units = Array.from({ length: Math.ceil(a.length / bytes) }, (_, index) => index)
  return units.filter(index => {
    const [from, to] = [index * bytes, Math.min(a.length, (index + 1) * bytes)]
    return !dirty.has(index) && a.compare(b, from, to, from, to) !== 0
  })
}
