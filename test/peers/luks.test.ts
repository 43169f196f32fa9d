/** Encrypted qcow2 disks: what we write as QEMU reads it, and what QEMU writes as we do, snapshots too. */
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { needs, run, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import {
  asQemuNames,
  decrypted,
  type EncryptedImage,
  encryptedIo,
  type Encryption,
  makeEncrypted,
  takeSnapshot,
} from './encrypted.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'
import { openForWriting, writeBoth } from './writing.js'

const K = 1024
const M = K * K
const SIZE = 5 * M + 7 * 512
const PASSPHRASE = 'of-the-top'
const PARENTS = 'of-the-parent'

interface Kind {
  readonly encryption: Encryption
  readonly options?: readonly string[]
  /** How what it stands on is encrypted. */
  readonly parent?: 'none' | 'aes' | 'luks'
  readonly cluster?: number
}

const LUKS: Encryption = { format: 'luks' }
const AES: Encryption = { format: 'aes' }
const KINDS: Record<string, Kind> = {
  'LUKS as QEMU makes it': { encryption: LUKS },
  'LUKS, aes-128-xts, plain': {
    encryption: { ...LUKS, 'cipher-alg': 'aes-128', 'ivgen-alg': 'plain' },
    options: ['cluster_size=4096'],
    cluster: 4 * K,
  },
  'LUKS, aes-256-cbc, essiv, over a plain parent': {
    encryption: {
      ...LUKS,
      'cipher-mode': 'cbc',
      'ivgen-alg': 'essiv',
      'ivgen-hash-alg': 'sha256',
      'hash-alg': 'sha512',
    },
    parent: 'none',
  },
  'LUKS, subclusters, over a parent with AES': {
    encryption: LUKS,
    options: ['extended_l2=on'],
    parent: 'aes',
  },
  'LUKS, data in another file': { encryption: LUKS, options: ['data_file=data'] },
  'LUKS, aes-256-ecb, over a parent with LUKS': {
    encryption: { ...LUKS, 'cipher-mode': 'ecb', 'hash-alg': 'sha1' },
    parent: 'luks',
  },
  AES: { encryption: AES },
  'AES, version 2, over a parent with AES': {
    encryption: AES,
    options: ['compat=0.10'],
    parent: 'aes',
  },
  'AES, subclusters of 512 bytes': {
    encryption: AES,
    options: ['extended_l2=on', 'cluster_size=16384'],
    cluster: 16 * K,
  },
}

/** The image, and a raw file of the same bytes. */
async function make(folder: string, { encryption, options = [], parent }: Kind) {
  const file = join(folder, 'disk.qcow2')
  const model = join(folder, 'model')
  await qemuImg('create', '-q', '-f', 'raw', model, String(SIZE))
  const below = join(folder, 'parent.qcow2')
  const writes = randomWrites(5, SIZE, { cluster: 64 * K, kinds: ['write', 'partial'] })
  const isParentEncrypted = parent === 'aes' || parent === 'luks'
  if (isParentEncrypted) {
    const image = { file: below, format: 'qcow2', passphrase: PARENTS } as const
    await makeEncrypted(image, SIZE, { format: parent })
    await encryptedIo(image, writes)
  } else if (parent) {
    await qemuImg('create', '-q', '-f', 'qcow2', below, String(SIZE))
    await qemuIo(below, writes)
  }
  if (parent) await qemuIo(model, writes, ['-f', 'raw'])
  const secrets = isParentEncrypted ? [PARENTS] : []
  const image: EncryptedImage = {
    file,
    format: 'qcow2',
    passphrase: PASSPHRASE,
    below: secrets,
  }
  const placed = options.map(option => option.replace(/^data_file=/, `data_file=${folder}/`))
  const over = parent ? ['-u', '-b', 'parent.qcow2', '-F', 'qcow2'] : []
  await makeEncrypted(image, SIZE, encryption, { options: placed, more: over })
  return { image, model }
}

async function isSame(t: Test, image: EncryptedImage, model: string, what: string) {
  const raw = await decrypted(image, join(image.file, '..'))
  t.ok(readFileSync(raw).equals(readFileSync(model)), what)
  await run('qemu-img', ['check', '-q', ...asQemuNames(image)])
  const { corruptions, leaks } = checkQcow2(new MemoryStore(image.file, readFileSync(image.file)))
  t.strictSame([corruptions, leaks], [0, 0], 'sound without a passphrase, too')
}

for (const [name, kind] of Object.entries(KINDS)) {
  t.test(name, needs('qemu-img', 'qemu-io'), async t => {
    const { image, model } = await make(tempFolder(t), kind)
    const passphrases = [PASSPHRASE, ...(image.below ?? [])]
    const hasSnapshots = !kind.options?.some(option => option.startsWith('data_file'))
    await isSame(t, image, model, 'what was made')
    for (let round = 0; round < 3; round++) {
      await writeBoth(await openForWriting(image.file, passphrases), model, round + 1)
      await isSame(t, image, model, `what we have written, round ${round}`)
      const { cluster = 64 * K } = kind
      const kinds = ['write', 'partial', 'zero'] as const
      const writes = randomWrites(round + 10, SIZE, { cluster, count: 10, kinds })
      await encryptedIo(image, writes)
      await qemuIo(model, writes, ['-f', 'raw'])
      const { read, close } = await openForWriting(image.file, passphrases)
      t.ok(read(0, SIZE).equals(readFileSync(model)), `what QEMU has written, round ${round}`)
      close()
      if (round === 0 && hasSnapshots) {
        await takeSnapshot(image, 'one')
        await qemuImg('convert', '-f', 'raw', '-O', 'raw', model, `${model}-one`)
      }
    }
    if (!hasSnapshots) return
    const raw = await decrypted(image, join(image.file, '..'), 'one')
    t.ok(readFileSync(raw).equals(readFileSync(`${model}-one`)), 'the snapshot is what it was')
  })
}

t.test('nothing of the image changes before the first write', needs('qemu-img'), async t => {
  const { image } = await make(tempFolder(t), { encryption: AES })
  const before = readFileSync(image.file)
  const { read, close } = await openForWriting(image.file, [PASSPHRASE])
  read(0, SIZE)
  close()
  t.ok(readFileSync(image.file).equals(before))
})

t.test('zeros are not to be seen in the file', needs('qemu-img'), async t => {
  const { image } = await make(tempFolder(t), { encryption: AES })
  const { disk, close } = await openForWriting(image.file, [PASSPHRASE])
  disk.write(Buffer.alloc(M), 0, M, 0)
  close()
  t.ok(statSync(image.file).size > M, 'they take what other bytes take')
  const content = readFileSync(image.file)
  t.notOk(content.subarray(-64 * K).every(byte => byte === 0))
})
