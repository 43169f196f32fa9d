/** Images made by QEMU's own tools, and what these tools say of them. */
import { readFileSync, rmSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Test } from 'tap'
import { catalogOf } from '../../src/image/catalog.js'
import { dataRuns, firstDifference, openedImage, readAll } from '../support/image.js'
import { run } from '../support/run.js'

const K = 1024

export const qemuImg = (...args: string[]): Promise<string> => run('qemu-img', args)

/** All commands in one process. */
export async function qemuIo(
  image: string,
  commands: readonly string[],
  options: readonly string[] = ['-f', 'qcow2'],
): Promise<void> {
  const args = commands.flatMap(command => ['-c', command])
  const output = await run('qemu-io', [...options, '-d', 'unmap', ...args, image], {
    cwd: dirname(image),
  })
  // It ends well even where a command failed.
  const failure = /.*(failed|error|invalid|not supported).*/i.exec(output)
  if (failure) throw new Error(`qemu-io: ${failure[0]}`)
}

export interface WriteOptions {
  readonly count?: number
  /** Bytes of a cluster, for what must be aligned. */
  readonly cluster: number
  readonly kinds?: readonly WriteKind[]
}
export type WriteKind = 'write' | 'partial' | 'zero' | 'zero-unmap' | 'discard' | 'compressed'

const ALL_KINDS: readonly WriteKind[] = ['write', 'partial', 'zero', 'zero-unmap', 'discard']

/** Commands that write here and there; the same for the same seed. */
export function randomWrites(seed: number, sizeBytes: number, options: WriteOptions): string[] {
  const { count = 24, cluster, kinds = ALL_KINDS } = options
  const random = randomNumbers(seed)
  // QEMU compresses into clusters that nobody wrote to: each once, and before all else.
  const fresh = new Set<number>()
  const commands = Array.from({ length: count }, (_, index) => {
    const kind = kinds[index % kinds.length] as WriteKind
    const pattern = 1 + random(255)
    if (kind === 'partial') {
      const offset = random(sizeBytes - 1)
      const length = 1 + random(Math.min(3 * cluster, 300 * K, sizeBytes - offset))
      return `write -P ${pattern} ${offset} ${length}`
    }
    const offset = random(Math.floor(sizeBytes / cluster)) * cluster
    const length = Math.min(sizeBytes - offset, (1 + random(3)) * cluster)
    if (kind !== 'compressed') return whole(kind, pattern, `${offset} ${length}`)
    if (fresh.has(offset)) return `read ${offset} 1`
    fresh.add(offset)
    return `write -c -P ${pattern} ${offset} ${Math.min(cluster, sizeBytes - offset)}`
  })
  const isFirst = (command: string) => command.startsWith('write -c')
  return [...commands.filter(isFirst), ...commands.filter(command => !isFirst(command))]
}

const whole = (
  kind: Exclude<WriteKind, 'partial' | 'compressed'>,
  pattern: number,
  range: string,
) =>
  ({
    write: `write -P ${pattern} ${range}`,
    zero: `write -z ${range}`,
    'zero-unmap': `write -z -u ${range}`,
    discard: `discard ${range}`,
  })[kind]

/** Returns random whole numbers below a limit. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed * 7919 + 1
  return below => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** What `qemu-img convert` makes of the disk, or of a snapshot. */
export async function convertedBy(
  image: string,
  snapshotId?: string,
  format = 'qcow2',
): Promise<Buffer> {
  const raw = `${image}.converted`
  const from = snapshotId === undefined ? [] : ['-l', `snapshot.id=${snapshotId}`]
  await run('qemu-img', ['convert', '-f', format, ...from, '-O', 'raw', image, raw], {
    cwd: dirname(image),
  })
  const bytes = readFileSync(raw)
  rmSync(raw)
  return bytes
}

/**
 * The disk, every snapshot, and the holes are as QEMU has them. `isFiner`: QEMU asks the file for
 * holes only where it takes an image for preallocated; here they may be found everywhere.
 */
export async function agreesWithQemu(t: Test, image: string, isFiner = false): Promise<void> {
  const open = openedImage(t, image)
  sameBytes(t, readAll(open.view()), await convertedBy(image), 'the disk')
  for (const snapshot of open.chain.snapshots) {
    const entry = catalogOf(open.chain).entries.find(
      ({ kind, attributes }) => kind === 'snapshot' && attributes['snapshot-id'] === snapshot.id,
    )
    if (!entry) throw new Error(`snapshot ${snapshot.id} is not shown`)
    const ours = readAll(open.views.viewOf(entry))
    // QEMU gives it the size that the disk has today (formats.md, 6.3).
    const theirs = await convertedBy(image, snapshot.id)
    const common = Math.min(ours.length, theirs.length)
    sameBytes(t, ours.subarray(0, common), theirs.subarray(0, common), `snapshot ${snapshot.id}`)
  }
  const ours = dataRuns(open.view())
  const theirs = await mappedRuns(image)
  const isWithin = ({ start, end }: Range) => theirs.some(r => r.start <= start && end <= r.end)
  if (isFiner) t.ok(ours.every(isWithin), 'data lie within what qemu-img map has')
  else t.same(ours, theirs, 'data lie where qemu-img map has them')
}

function sameBytes(t: Test, ours: Buffer, theirs: Buffer, what: string): void {
  // A size that is no multiple of 512 is rounded down by QEMU (formats.md, 6.4).
  t.ok(ours.length - theirs.length < 512 && ours.length >= theirs.length, `${what}: its size`)
  t.equal(firstDifference(ours.subarray(0, theirs.length), theirs), -1, `${what}: its bytes`)
}

interface Range {
  readonly start: number
  readonly end: number
}

interface MapEntry {
  readonly start: number
  readonly length: number
  readonly zero: boolean
  readonly data: boolean
}

async function mappedRuns(image: string): Promise<Range[]> {
  const output = await run('qemu-img', ['map', '-f', 'qcow2', '--output=json', image], {
    cwd: dirname(image),
  })
  const runs: Range[] = []
  for (const { start, length, zero, data } of JSON.parse(output) as MapEntry[]) {
    if (!data || zero) continue
    const last = runs.at(-1)
    if (last?.end === start) runs.splice(-1, 1, { start: last.start, end: start + length })
    else runs.push({ start, end: start + length })
  }
  return runs
}
