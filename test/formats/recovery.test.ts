/** An image that was not closed cleanly is recovered only once nothing can refuse it any more. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { lockChain, unlockChain } from '../../src/image/opening/encryption.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'

const CLUSTER = 4096
const DIRTY = 1n
const CRYPT_METHOD_AT = 32
const FEATURES_AT = 72

/** An image with the dirty bit, and the count of a cluster that nothing uses. */
function dirtyImage(t: Test, more: Partial<ImageSpec> = {}) {
  const image = buildImage({
    clusterBits: 12,
    sizeBytes: 64 * CLUSTER,
    incompatible: DIRTY,
    compatible: 1n,
    clusters: new Map([[0, { kind: 'data', bytes: noise(CLUSTER, 1) }]]),
    ...more,
  })
  const bytes = image.bytes()
  const block = Number(bytes.readBigUInt64BE(image.refcountTableAt))
  bytes.writeUInt16BE(1, block + 2 * 100)
  const file = join(tempFolder(t), 'image.qcow2')
  writeFileSync(file, bytes)
  return { file, image, bytes }
}

/** Opens an image as a mount does, and closes it. Returns what it is opened for, and what the user is told. */
async function open(
  file: string,
  access: NonNullable<OpenOptions['access']>,
  ask: () => Promise<Buffer[]>,
) {
  const opened = openChain(file, { access, format: 'qcow2' })
  try {
    const chain = await unlockChain(opened, ask)
    lockChain(chain)
    return { isWritable: chain.isWritable, warnings: chain.warnings.join('\n') }
  } finally {
    closeChain(opened)
  }
}

const nobodyAsked = async () => [Buffer.from('secret')]

t.test('it is recovered in the end', async t => {
  const { file, bytes } = dirtyImage(t)
  const opened = openChain(file, { access: 'write' })
  t.ok(readFileSync(file).equals(bytes), 'opening alone changes nothing')
  closeChain(opened)
  const { isWritable, warnings } = await open(file, 'write', nobodyAsked)
  t.ok(isWritable)
  t.match(warnings, /reference counts have been rebuilt/)
  t.equal(readFileSync(file).readBigUInt64BE(FEATURES_AT) & DIRTY, 0n)
})

t.test('a refused image stays as it is', async t => {
  const refusals: Record<string, Partial<ImageSpec>> = {
    'a backing file that is missing': { backing: { name: 'none', format: 'raw' } },
    'a data file that is missing': { dataFile: 'none' },
  }
  for (const [title, spec] of Object.entries(refusals)) {
    const { file, bytes } = dirtyImage(t, spec)
    await t.rejects(open(file, 'write', nobodyAsked), { code: 'MISSING' }, title)
    t.ok(readFileSync(file).equals(bytes), `${title}: not a byte has changed`)
  }
})

t.test('without the passphrase nothing changes', async t => {
  const { file, bytes } = dirtyImage(t)
  bytes.writeUInt32BE(1, CRYPT_METHOD_AT)
  writeFileSync(file, bytes)
  const ask = async (): Promise<Buffer[]> => {
    throw new Error('nobody knows')
  }
  await t.rejects(open(file, 'write', ask), /nobody knows/)
  t.ok(readFileSync(file).equals(bytes))
})

t.test('one that cannot be recovered is read', async t => {
  const { file, bytes, image } = dirtyImage(t)
  bytes.writeBigUInt64BE((1n << 63n) | 0x200n, image.l1At)
  writeFileSync(file, bytes)
  const { isWritable, warnings } = await open(file, 'write if possible', nobodyAsked)
  t.notOk(isWritable)
  t.match(warnings, /not closed cleanly.*mounted read-only/)
  await t.rejects(open(file, 'write', nobodyAsked), /not closed cleanly/)
  t.ok(readFileSync(file).equals(bytes), 'not a byte has changed')
})

t.test('an image that the first write would refuse is not recovered', async t => {
  const shared: Cluster = { kind: 'data', bytes: noise(CLUSTER, 3) }
  const COPIED = 1n << 63n
  const damages: Record<string, (made: ReturnType<typeof dirtyImage>) => void> = {
    'a cluster that the disk claims for itself, and a snapshot has, too': ({ bytes, image }) => {
      const at = image.l2EntryAt(1)
      bytes.writeBigUInt64BE(bytes.readBigUInt64BE(at) | COPIED, at)
    },
    'an L2 table over the refcount table': ({ bytes, image }) => {
      bytes.writeBigUInt64BE(BigInt(image.refcountTableAt) | COPIED, image.l1At + 8)
    },
    'two L1 entries with one L2 table': ({ bytes, image }) => {
      bytes.writeBigUInt64BE(bytes.readBigUInt64BE(image.l1At), image.l1At + 8)
    },
  }
  for (const [title, damage] of Object.entries(damages)) {
    const made = dirtyImage(t, {
      sizeBytes: 600 * CLUSTER,
      clusters: new Map([[1, shared]]),
      snapshots: [{ clusters: new Map([[1, shared]]) }],
    })
    damage(made)
    const { file, bytes } = made
    writeFileSync(file, bytes)
    await t.rejects(open(file, 'write', nobodyAsked), /not closed cleanly/, title)
    const { isWritable, warnings } = await open(file, 'write if possible', nobodyAsked)
    t.notOk(isWritable, title)
    t.match(warnings, /not closed cleanly.*mounted read-only/, title)
    t.ok(readFileSync(file).equals(bytes), `${title}: not a byte has changed`)
  }
})
