/** LUKS containers that QEMU and cryptsetup made: their keys and their data, and ours for QEMU to read. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Luks1Header, readLuks1, unlockLuks1 } from '../../src/crypto/luks1.js'
import { createSectorCipher } from '../../src/crypto/sector-cipher.js'
import type { CipherMode, IvGenerator } from '../../src/crypto/spec.js'
import { readHeader } from '../../src/formats/qcow2/header.js'
import { readLuks } from '../../src/formats/qcow2/luks.js'
import { noise } from '../fixtures/model.js'
import { creating } from '../peers/encrypted.js'
import { qemuImg } from '../peers/qemu.js'
import { needs, run, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { luksContainer } from './luks-builder.js'
import { shared } from './reference.js'

const PASSPHRASE = 'correct horse'
const SECRET = ['--object', `secret,id=s,data=${PASSPHRASE}`]
const DATA = noise(300 * 512, 1)
const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
/** QEMU and these tests have two processors. */
const JOBS = 2

const HASHES = ['sha256', 'sha1', 'sha512', 'ripemd160', 'md5', 'sha224', 'sha384']
const GENERATORS = ['plain', 'plain64', 'essiv:sha256', 'essiv:md5']

interface Combination {
  readonly bits: number
  readonly mode: string
  readonly generator: string
  readonly hash: string
}

const titleOf = ({ bits, mode, generator, hash }: Combination) =>
  `aes-${bits}-${mode}${generator === '' ? '' : `-${generator}`} ${hash}`

const CIPHERS = ['xts', 'cbc', 'ecb'].flatMap(mode => [128, 192, 256].map(bits => ({ mode, bits })))

/** QEMU ends on an assertion where the key slots end inside a sector. */
const QEMU_CIPHERS = CIPHERS.filter(({ bits, mode }) => bits !== 192 || mode === 'xts')

/** Each cipher with each generator, and with one hash after another; in a long test, with all. */
function combinations(
  ciphers: readonly Pick<Combination, 'bits' | 'mode'>[],
  generatorsOf: (mode: string) => readonly string[],
  hashes: readonly string[],
): Combination[] {
  return ciphers
    .flatMap(cipher => generatorsOf(cipher.mode).map(generator => ({ ...cipher, generator })))
    .flatMap((cipher, i) =>
      (IS_LONG ? hashes : [hashes[i % hashes.length]!]).map(hash => ({ ...cipher, hash })),
    )
}

/** Works on all of them, so many at once. */
async function each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items]
  const worker = async () => {
    for (let item = left.shift(); item; item = left.shift()) await work(item)
  }
  await Promise.all(Array.from({ length: JOBS }, worker))
}

interface Open {
  readonly header: Luks1Header
  /** In hexadecimal digits; undefined when the passphrase opens no slot. */
  readonly key: string | undefined
  /** The disk after the header. */
  readonly data: Buffer
}

/** A container: a file that begins with its header. */
async function openContainer(path: string, passphrase = PASSPHRASE): Promise<Open> {
  const store = new MemoryStore(path, readFileSync(path))
  const area = { offset: 0, length: store.sizeBytes }
  const header = readLuks1(store, area)
  const spec = await unlockLuks1(store, area, header, Buffer.from(passphrase))
  const data = store.bytes().subarray(header.payloadOffset)
  if (spec && data.length > 0) {
    createSectorCipher(spec).decrypt(data, 0, data.length, data, 0, 0)
  }
  return { header, key: spec && Buffer.from(spec.key).toString('hex'), data }
}

/** A container with other data, encrypted here. */
async function rewrite(path: string, data: Buffer): Promise<void> {
  const content = readFileSync(path)
  const store = new MemoryStore(path, content)
  const area = { offset: 0, length: content.length }
  const header = readLuks1(store, area)
  const spec = await unlockLuks1(store, area, header, Buffer.from(PASSPHRASE))
  if (!spec) throw new Error('it is locked')
  createSectorCipher(spec).encrypt(data, 0, data.length, content, header.payloadOffset, 0)
  writeFileSync(path, content)
}

async function readByQemu(path: string): Promise<Buffer> {
  const image = `driver=luks,key-secret=s,file.filename=${path}`
  await qemuImg('convert', ...SECRET, '--image-opts', image, '-O', 'raw', `${path}.raw`)
  return readFileSync(`${path}.raw`)
}

function qemuOptions({ bits, mode, generator, hash }: Combination, prefix = ''): string {
  const [name, ivHash] = generator.split(':')
  const options = [
    'key-secret=s',
    'iter-time=10',
    `cipher-alg=aes-${bits}`,
    `cipher-mode=${mode}`,
    `ivgen-alg=${name}`,
    ...(ivHash === undefined ? [] : [`ivgen-hash-alg=${ivHash}`]),
    `hash-alg=${hash}`,
  ]
  return options.map(option => `${prefix}${option}`).join(',')
}

interface Dump {
  readonly fields: Record<string, string>
  /** In hexadecimal digits; undefined where cryptsetup does not open it. */
  readonly key: string | undefined
}

/** What cryptsetup says of a container. */
async function dump(path: string): Promise<Dump> {
  const text = await run('cryptsetup', ['luksDump', path])
  const fields: Record<string, string> = {}
  let slot = ''
  for (const line of text.split('\n')) {
    const [, name, value] = /^\s*([^:]+):\s*(.*)$/.exec(line) ?? []
    if (name === undefined || value === undefined) continue
    if (name.startsWith('Key Slot')) slot = `${name} `
    if (name.startsWith('Key Slot') || slot === '') fields[name] = value
    else fields[`${slot}${name}`] = value
  }
  // ECB with initialization vectors it leaves to the kernel, and XTS with AES-192, too.
  const isKernels = fields['Cipher mode']?.startsWith('ecb-') || fields['MK bits'] === '384'
  if (isKernels) return { fields, key: undefined }
  const args = ['luksDump', '--dump-master-key', '--batch-mode', '--key-file', '-', path]
  const keyText = await run('cryptsetup', args, { input: PASSPHRASE })
  const key = /MK dump:([\s0-9a-f]+)/.exec(keyText)?.[1] ?? ''
  return { fields, key: key.replace(/\s/g, '') }
}

function agreesWithDump(t: Test, { header, key }: Open, { fields, key: theirs }: Dump): void {
  const { mode, ivGenerator, ivHash } = header
  const generator = ivGenerator === 'none' ? '' : `-${ivGenerator}`
  t.match(fields, {
    Version: '1',
    'Cipher name': header.cipherName,
    'Cipher mode': `${mode}${generator}${ivHash === undefined ? '' : `:${ivHash}`}`,
    'Hash spec': header.hash,
    'Payload offset': `${header.payloadOffset / 512}`,
    'MK bits': `${header.keyBytes * 8}`,
    'MK iterations': `${header.masterKeyIterations}`,
    UUID: header.uuid,
  })
  for (const [i, slot] of header.slots.entries()) {
    t.equal(fields[`Key Slot ${i}`], slot.isActive ? 'ENABLED' : 'DISABLED')
    if (!slot.isActive) continue
    t.match(fields, {
      [`Key Slot ${i} Iterations`]: `${slot.iterations}`,
      [`Key Slot ${i} Key material offset`]: `${slot.keyOffset / 512}`,
      [`Key Slot ${i} AF stripes`]: `${slot.stripes}`,
    })
  }
  if (theirs !== undefined) t.equal(key, theirs, 'the master key')
}

t.test('containers made by QEMU', needs('qemu-img', 'cryptsetup'), async t => {
  const folder = tempFolder(t)
  const raw = join(folder, 'raw')
  writeFileSync(raw, DATA)
  const all = combinations(QEMU_CIPHERS, () => GENERATORS, HASHES)
  // In the short form, each cipher with the generator whose turn it is.
  const turns = GENERATORS.length
  const made = IS_LONG ? all : all.filter((_, i) => i % turns === Math.floor(i / turns) % turns)
  await each(made, async combination => {
    const path = join(folder, `${titleOf(combination)}.luks`)
    const options = qemuOptions(combination)
    await creating(['convert', '-f', 'raw', '-O', 'luks', ...SECRET, '-o', options, raw, path])
    const ours = await openContainer(path)
    // cryptsetup does without that one.
    const theirs = combination.hash === 'md5' ? undefined : await dump(path)
    const changed = noise(DATA.length, 2)
    await rewrite(path, changed)
    const theirData = await readByQemu(path)
    const wrong = await openContainer(path, 'wrong horse')
    await t.test(titleOf(combination), async t => {
      t.ok(ours.data.equals(DATA), 'its data')
      if (theirs) agreesWithDump(t, ours, theirs)
      t.ok(theirData.equals(changed), 'our data')
      t.equal(wrong.key, undefined, 'a wrong passphrase')
    })
  })
})

t.test('containers read by QEMU', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  for (const combination of combinations(QEMU_CIPHERS, () => GENERATORS, HASHES)) {
    const { bits, mode, generator, hash } = combination
    const [ivGenerator, ivHash] = generator.split(':')
    const spec = {
      mode: mode as CipherMode,
      ivGenerator: mode === 'ecb' ? 'none' : (ivGenerator as IvGenerator),
      ivHash,
      key: noise(mode === 'xts' ? bits / 4 : bits / 8, bits),
    } as const
    const header = luksContainer({
      ...spec,
      hash,
      modeText: `${mode}-${generator}`,
      passphrases: [undefined, PASSPHRASE],
    })
    const data = Buffer.alloc(DATA.length)
    createSectorCipher(shared(spec)).encrypt(DATA, 0, DATA.length, data, 0, 0)
    const path = join(folder, titleOf(combination))
    writeFileSync(path, Buffer.concat([header, data]))
    t.ok((await readByQemu(path)).equals(DATA), titleOf(combination))
  }
})

t.test('containers made by cryptsetup', needs('cryptsetup'), async t => {
  const folder = tempFolder(t)
  // ECB with initialization vectors takes a kernel's help.
  const generatorsOf = (mode: string) =>
    mode === 'ecb' ? [''] : ['plain', 'plain64', 'essiv:sha256']
  const hashes = ['sha256', 'sha1', 'sha512', 'ripemd160']
  const ciphers = CIPHERS.filter(({ bits, mode }) => bits !== 192 || mode !== 'xts')
  const made = combinations(ciphers, generatorsOf, hashes)
  await each(made, async combination => {
    const { bits, mode, generator, hash } = combination
    const cipher = `aes-${mode}${generator === '' ? '' : `-${generator}`}`
    const path = join(folder, titleOf(combination))
    writeFileSync(path, Buffer.alloc(4 * 2 ** 20))
    const args = [
      ...['luksFormat', '--type=luks1', '--batch-mode', '--pbkdf-force-iterations=1000'],
      ...[`--cipher=${cipher}`, `--key-size=${mode === 'xts' ? 2 * bits : bits}`],
      `--hash=${hash}`,
    ]
    await run('cryptsetup', [...args, path, '-'], { input: PASSPHRASE })
    const ours = await openContainer(path)
    const theirs = await dump(path)
    await t.test(titleOf(combination), async t => agreesWithDump(t, ours, theirs))
  })
})

t.test('key slots of a qcow2 image', needs('qemu-img'), async t => {
  const path = join(tempFolder(t), 'disk.qcow2')
  const combination = { bits: 128, mode: 'cbc', generator: 'essiv:sha256', hash: 'sha1' }
  const options = `encrypt.format=luks,${qemuOptions(combination, 'encrypt.')}`
  await creating(['create', '-q', '-f', 'qcow2', ...SECRET, '-o', options, path, '1M'])
  const keyFor = async (passphrase: string) => {
    const store = new MemoryStore(path, readFileSync(path))
    const qcow2 = readHeader(store)
    const luks = readLuks(store, qcow2)
    const spec = await unlockLuks1(store, qcow2.encryption!, luks, Buffer.from(passphrase))
    t.match(luks, { cipher: 'aes-128', mode: 'cbc', ivGenerator: 'essiv', hash: 'sha1' })
    return spec && Buffer.from(spec.key).toString('hex')
  }
  const amend = (change: string, ...secrets: string[]) => {
    const image = `driver=qcow2,encrypt.key-secret=s,file.filename=${path}`
    const objects = secrets.flatMap(secret => ['--object', `secret,${secret}`])
    return creating(['amend', ...SECRET, ...objects, '--image-opts', '-o', change, image])
  }
  const add = (name: string, slot: number, passphrase: string) =>
    amend(
      `encrypt.state=active,encrypt.new-secret=${name},encrypt.iter-time=10,encrypt.keyslot=${slot}`,
      `id=${name},data=${passphrase}`,
    )

  const key = await keyFor(PASSPHRASE)
  t.equal(key?.length, 32)
  await add('second', 7, 'second')
  await add('third', 3, 'drítte')
  t.equal(await keyFor(PASSPHRASE), key)
  t.equal(await keyFor('second'), key)
  t.equal(await keyFor('drítte'), key)
  t.equal(await keyFor('fourth'), undefined)
  await amend('encrypt.state=inactive,encrypt.keyslot=7')
  t.equal(await keyFor('second'), undefined)
  t.equal(await keyFor('drítte'), key)
})
