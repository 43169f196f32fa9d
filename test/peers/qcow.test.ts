/** QEMU and libqcow read our writes to qcow images; we read QEMU's. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { checkQcow } from '../../src/formats/qcow/check.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { noise } from '../fixtures/model.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { qemuImg, randomWrites, type WriteKind } from './qemu.js'
import { openForWriting, writeBoth } from './writing.js'

const K = 1024
const M = K * K
const SIZE = 5 * M + 7 * 512
const PASSPHRASE = '12345678'

interface Kind {
  /** Where QEMU is not asked to make it, which it does with 4 KiB, or 512 bytes over another image. */
  readonly bits?: readonly [clusterBits: number, l2Bits: number]
  /** The format of the backing file, and what part of the disk that has. */
  readonly parent?: 'raw' | 'qcow' | 'qcow2'
  readonly parentPart?: number
  /** Made by a conversion that compresses. */
  readonly isCompressed?: boolean
  readonly isEncrypted?: boolean
}

const KINDS: Record<string, Kind> = {
  'as QEMU makes it': {},
  'over a raw disk': { parent: 'raw' },
  'over a shorter raw disk': { parent: 'raw', parentPart: 0.4 },
  'over a longer qcow disk': { parent: 'qcow', parentPart: 1.5 },
  'over a qcow2 disk': { parent: 'qcow2' },
  compressed: { isCompressed: true },
  encrypted: { isEncrypted: true },
  'encrypted, over a qcow disk': { isEncrypted: true, parent: 'qcow' },
  'clusters of 512 bytes, tables of 512': { bits: [9, 6] },
  'clusters of 512 bytes, tables of 64K': { bits: [9, 13] },
  'clusters of 64K, tables of 512 bytes': { bits: [16, 6] },
  'clusters of 64K, tables of 64K': { bits: [16, 13] },
  'clusters of 8K, tables of 1K, over a qcow disk': { bits: [13, 7], parent: 'qcow' },
  'clusters of 64K over a shorter raw disk': { bits: [16, 9], parent: 'raw', parentPart: 0.4 },
  'clusters of 64K, encrypted': { bits: [16, 9], isEncrypted: true },
}

const clusterOf = ({ bits, parent }: Kind): number => (bits ? 2 ** bits[0] : parent ? 512 : 4 * K)

/** What QEMU is told of an image. */
const imageOptions = (image: string, isEncrypted?: boolean): string =>
  `driver=qcow,file.filename=${image}${isEncrypted ? ',encrypt.format=aes,encrypt.key-secret=s' : ''}`
const SECRET = ['--object', `secret,id=s,data=${PASSPHRASE}`]

async function qemuIo(options: string, commands: readonly string[]): Promise<void> {
  const args = commands.flatMap(command => ['-c', command])
  const output = await run('qemu-io', [...SECRET, '--image-opts', ...args, options])
  const failure = /.*(failed|error|invalid|not supported).*/i.exec(output)
  if (failure) throw new Error(`qemu-io: ${failure[0]}`)
}

/** QEMU copies nothing from below into a cluster that it writes in part: so it writes whole ones. */
async function writeTheirs(image: string, model: string, kind: Kind, seed: number): Promise<void> {
  const cluster = clusterOf(kind)
  const copies = !kind.parent || cluster === 512
  const kinds: WriteKind[] = copies ? ['write', 'partial', 'zero'] : ['write', 'zero']
  const unit = copies ? cluster : Math.max(cluster, 4 * K)
  const writes = randomWrites(seed, SIZE, { cluster: unit, count: 10, kinds })
  await qemuIo(imageOptions(image, kind.isEncrypted), writes)
  await qemuIo(`driver=raw,file.filename=${model}`, writes)
}

async function isSame(t: Test, image: string, model: string, kind: Kind, what: string) {
  const raw = `driver=raw,file.filename=${model}`
  const ours = imageOptions(image, kind.isEncrypted)
  const compared = await qemuImg('compare', ...SECRET, '--image-opts', raw, ours)
  t.match(compared, /identical/, what)
  const result = checkQcow(new MemoryStore(image, readFileSync(image)))
  t.equal(result.corruptions, 0, result.findings[0]?.message ?? 'no corruption')
  return result
}

/** The image, and a raw file of the same bytes. */
async function make(folder: string, kind: Kind): Promise<{ image: string; model: string }> {
  const { bits, parent, parentPart = 1, isCompressed, isEncrypted } = kind
  const [image, model] = [join(folder, 'disk.qcow'), join(folder, 'model')]
  await qemuImg('create', '-q', '-f', 'raw', model, String(SIZE))
  const aes = isEncrypted ? ['-o', 'encrypt.format=aes,encrypt.key-secret=s'] : []
  if (isCompressed) {
    const writes = randomWrites(3, SIZE, { cluster: 64 * K, kinds: ['write', 'partial'] })
    await qemuIo(`driver=raw,file.filename=${model}`, writes)
    // QEMU 7.2 fails without a word once all is written: its call that says so is none to this format.
    await attempt('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow', model, image])
    return { image, model }
  }
  if (parent) {
    const parentBytes = Math.floor((SIZE * parentPart) / 512) * 512
    const below = join(folder, `parent.${parent}`)
    const writes = randomWrites(5, Math.min(SIZE, parentBytes), {
      cluster: 4 * K,
      kinds: ['write'],
    })
    const full = join(folder, 'full')
    await qemuImg('create', '-q', '-f', 'raw', full, String(parentBytes))
    await qemuIo(`driver=raw,file.filename=${full}`, writes)
    await qemuIo(`driver=raw,file.filename=${model}`, writes)
    await qemuImg('convert', '-f', 'raw', '-O', parent, full, below)
  }
  if (bits) {
    const [clusterBits, l2Bits] = bits
    const backingName = parent ? `parent.${parent}` : ''
    const cryptMethod = isEncrypted ? 1 : 0
    const spec = { sizeBytes: SIZE, clusterBits, l2Bits, backingName, cryptMethod }
    writeFileSync(image, buildQcow(spec).bytes)
    return { image, model }
  }
  const over = parent ? ['-b', `parent.${parent}`, '-F', parent] : []
  const args = [...SECRET, '-q', '-f', 'qcow', ...aes, ...over, image, String(SIZE)]
  await run('qemu-img', ['create', ...args], { cwd: dirname(image) })
  return { image, model }
}

for (const [name, kind] of Object.entries(KINDS)) {
  t.test(name, needs('qemu-img', 'qemu-io'), async t => {
    const { image, model } = await make(tempFolder(t), kind)
    const { compressedClusters } = await isSame(t, image, model, kind, 'what was made')
    t.equal(compressedClusters > 0, kind.isCompressed === true)
    for (let round = 0; round < 3; round++) {
      await writeBoth(await openForWriting(image, [PASSPHRASE]), model, round + 1)
      await isSame(t, image, model, kind, `what we have written, round ${round}`)
      await writeTheirs(image, model, kind, round + 10)
      await isSame(t, image, model, kind, `what QEMU has written, round ${round}`)
    }
    const { read, close } = await openForWriting(image, [PASSPHRASE])
    t.ok(read(0, SIZE).equals(readFileSync(model)), 'what is read')
    close()
  })
}

t.test('nothing of the image changes before the first write', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow')
  await qemuImg('create', '-q', '-f', 'qcow', image, String(SIZE))
  const before = readFileSync(image)
  const { disk, close } = await openForWriting(image, [PASSPHRASE])
  disk.flush()
  close()
  t.ok(readFileSync(image).equals(before))
})

t.test('a disk that ends within a sector', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const [image, raw] = [join(folder, 'disk.qcow'), join(folder, 'raw')]
  // QEMU rounds its size down to sectors.
  const [sizeBytes, theirs] = [1_000_003, 999_936]
  writeFileSync(image, buildQcow({ sizeBytes }).bytes)
  const { disk, close } = await openForWriting(image, [PASSPHRASE])
  const bytes = noise(sizeBytes, 1)
  disk.write(bytes, 0, sizeBytes, 0)
  close()
  await qemuImg('convert', '-f', 'qcow', '-O', 'raw', image, raw)
  t.ok(readFileSync(raw).equals(bytes.subarray(0, theirs)))
})

/** The disks of an image and of those that it stands on, as libqcow reads them. */
async function byLibqcow(t: Test, image: string): Promise<Buffer[]> {
  const folder = join(tempFolder(t), 'libqcow')
  mkdirSync(folder)
  await run('qcowmount', [image, folder])
  const unmount = () => attempt('umount', ['--lazy', folder])
  try {
    return readdirSync(folder).map(name => readFileSync(join(folder, name)))
  } finally {
    await unmount()
  }
}

/** It reads no tables that are larger than a cluster, whoever has written them. */
const LIBQCOW: readonly string[] = [
  'as QEMU makes it',
  'compressed',
  'clusters of 512 bytes, tables of 512',
  'clusters of 64K, tables of 512 bytes',
]

for (const name of LIBQCOW) {
  const skip = { ...needs('qemu-img', 'qemu-io', 'qcowmount'), ...needsRoot() }
  t.test(`by libqcow: ${name}`, skip, async t => {
    const { image, model } = await make(tempFolder(t), KINDS[name] as Kind)
    for (let round = 0; round < 3; round++) {
      await writeBoth(await openForWriting(image, [PASSPHRASE]), model, round + 20)
      const disks = await byLibqcow(t, image)
      t.equal(disks.length, 1)
      t.ok(disks[0]?.equals(readFileSync(model)), `round ${round}`)
    }
  })
}
