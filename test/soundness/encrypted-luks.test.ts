/** Power cuts over images that QEMU itself has encrypted with LUKS, and that it reads again. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { CipherSpec } from '../../src/crypto/spec.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { type Encryption, encryptedIo, makeEncrypted, takeSnapshot } from '../peers/encrypted.js'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { openWritable } from '../support/writable.js'
import { BRIEF, cutRandom } from './cut-suite.js'
import { type Kind, settled } from './kinds.js'
import { qemuChecks, qemuReads } from './qemu-check.js'
import { PASSPHRASE } from './reference-cipher.js'
import { subjectOf } from './scenario.js'

const CLUSTER = 16 * 1024

async function keyOf(file: string): Promise<CipherSpec> {
  const chain = openChain(file, { format: 'qcow2' })
  try {
    const { layers } = await unlockChain(chain, async () => [Buffer.from(PASSPHRASE)])
    return layers[0].encryption?.spec as CipherSpec
  } finally {
    closeChain(chain)
  }
}

async function makeLuksKind(title: string, how: Encryption, folder: string): Promise<Kind> {
  const file = join(folder, 'image.qcow2')
  const image = { file, format: 'qcow2', passphrase: PASSPHRASE } as const
  await makeEncrypted(image, 2 ** 20, how, { options: [`cluster_size=${CLUSTER}`] })
  await encryptedIo(image, ['write -P 1 0 100k', 'write -P 2 300k 7k'])
  await takeSnapshot(image, 'one')
  await encryptedIo(image, ['write -P 3 20k 30k', 'write -z 64k 16k'])
  const files = {
    image: new MemoryStore('image.qcow2', readFileSync(file)),
    data: undefined,
    parent: undefined,
    cluster: CLUSTER,
    encryption: {
      spec: await keyOf(file),
      countsBy: 'file',
      qemuOptions: 'encrypt.key-secret=key',
    } as const,
  }
  return { ...settled(title, files), isRawData: false, isLazy: false, isHeavy: false, folder }
}

const KINDS: Record<string, Encryption> = {
  'aes-256-xts': { format: 'luks' },
  'aes-128-cbc': {
    ...{ format: 'luks', 'cipher-alg': 'aes-128' },
    ...{ 'cipher-mode': 'cbc', 'ivgen-alg': 'plain64' },
  },
}

for (const [title, how] of Object.entries(KINDS)) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeLuksKind(title, how, tempFolder(t))
    t.ok(kind.luksHeader.length > 0)
    const { judged, sampled } = cutRandom(subjectOf(kind, openWritable), BRIEF)
    const checked = await qemuChecks(kind, sampled)
    const read = await qemuReads(kind, sampled)
    t.ok(judged > 0 && read > 0, `${judged} cuts, ${checked} checked, ${read} read by QEMU`)
  })
}
