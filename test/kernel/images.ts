/** Images as qemu-img and qemu-io make them. */
import { createHash, randomFillSync } from 'node:crypto'
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { run } from '../support/run.js'

const MIB = 2 ** 20

export interface MadeImage {
  readonly file: string
  readonly sizeBytes: number
  readonly snapshots: readonly string[]
}

/**
 * A disk with data, zeros, holes, also at its end, and compressed clusters; its size is no multiple
 * of a cluster, and its two snapshots differ from it and from each other.
 */
export async function makeImage(folder: string, sizeBytes = 48 * MIB + 3584): Promise<MadeImage> {
  const file = join(folder, 'disk.qcow2')
  const random = join(folder, 'random')
  writeFileSync(random, randomFillSync(Buffer.alloc(4 * MIB)))
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', file, String(sizeBytes)])
  await qemuIo(file, [
    `write -q -s ${random} 0 4M`,
    `write -q -s ${random} 10M 2M`,
    'write -q -z 12M 1M',
    'write -q -c -P 0x77 20M 1M',
  ])
  await run('qemu-img', ['snapshot', '-c', 'one', file])
  await qemuIo(file, [
    'write -q -P 0x55 1M 512k',
    'discard -q 10M 1M',
    'write -q -P 0x44 31458280 512',
  ])
  await run('qemu-img', ['snapshot', '-c', 'two', file])
  await qemuIo(file, ['write -q -P 0x66 40M 64k', 'write -q -P 0x67 3M 64k'])
  chmodSync(file, 0o664)
  return { file, sizeBytes, snapshots: ['one', 'two'] }
}

const qemuIo = (file: string, commands: string[]): Promise<string> =>
  run('qemu-io', ['-f', 'qcow2', ...commands.flatMap(command => ['-c', command]), file])

/** What QEMU takes the disk, or one of its snapshots, for: a sparse raw file. */
export async function convert(image: string, raw: string, snapshot?: string): Promise<string> {
  const from = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`]
  await run('qemu-img', ['convert', '-f', 'qcow2', ...from, '-O', 'raw', image, raw])
  return raw
}

export const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
