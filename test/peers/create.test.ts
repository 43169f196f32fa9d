/** New images beside those that `qemu-img create` makes: the same structure, and both programs read and write them. */
import { createHash } from 'node:crypto'
import { closeSync, mkdirSync, openSync, readdirSync, readSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { parseCreateOptions } from '../../src/cli/create-options.js'
import { parseDiskSize } from '../../src/sizes.js'
import { createImage } from '../../src/image/making/create-image.js'
import { creatorOf } from '../../src/image/making/new-image.js'
import { openImage } from '../../src/image/open-image.js'
import { SEEK_DATA, seekExtent } from '../../src/io/libc.js'
import { needs, run, tempFolder } from '../support/run.js'
import { creating } from './encrypted.js'
import { qemuImg } from './qemu.js'

interface Case {
  readonly format: string
  readonly size: string
  readonly options?: string
  /** The format of the backing file, which has 3 MiB. */
  readonly base?: string
  /** The bytes that may differ: QEMU puts tables elsewhere, or the file holds what is random. */
  readonly differs?: true
}

const PASSPHRASE = 'of-the-new'
/** The room for a descriptor within an extent. */
const DESCRIPTOR_BYTES = 20 * 512

const CASES: readonly Case[] = [
  { format: 'raw', size: '3M' },
  { format: 'raw', size: '1000001' },
  { format: 'raw', size: '1M', options: 'preallocation=falloc' },
  { format: 'raw', size: '1M', options: 'preallocation=full' },
  { format: 'qcow2', size: '0' },
  { format: 'qcow2', size: '1G' },
  { format: 'qcow2', size: '1000001' },
  { format: 'qcow2', size: '64T' },
  { format: 'qcow2', size: '1G', options: 'compat=0.10' },
  { format: 'qcow2', size: '64M', options: 'cluster_size=512' },
  { format: 'qcow2', size: '64M', options: 'cluster_size=4k,lazy_refcounts=on' },
  { format: 'qcow2', size: '16T', options: 'cluster_size=2M' },
  { format: 'qcow2', size: '1G', options: 'refcount_bits=1' },
  { format: 'qcow2', size: '1G', options: 'refcount_bits=64,cluster_size=1k' },
  { format: 'qcow2', size: '1G', options: 'extended_l2=on,cluster_size=16k' },
  { format: 'qcow2', size: '1G', options: 'extended_l2=on' },
  { format: 'qcow2', size: '1G', options: 'compression_type=zstd' },
  { format: 'qcow2', size: '9M', options: 'preallocation=metadata' },
  { format: 'qcow2', size: '9M', options: 'preallocation=falloc', differs: true },
  { format: 'qcow2', size: '3M', options: 'preallocation=full,cluster_size=4k', differs: true },
  { format: 'qcow2', size: '3M', options: 'preallocation=metadata,extended_l2=on' },
  { format: 'qcow2', size: '3M', options: 'data_file=data' },
  { format: 'qcow2', size: '3M', options: 'data_file=data,data_file_raw=on' },
  { format: 'qcow2', size: '3M', options: 'data_file=data,preallocation=falloc' },
  { format: 'qcow2', size: '5M', base: 'raw' },
  { format: 'qcow2', size: '3M', base: 'qcow2', options: 'compat=0.10' },
  { format: 'qcow2', size: '3M', base: 'vmdk', options: 'extended_l2=on,preallocation=metadata' },
  {
    format: 'qcow2',
    size: '3M',
    options: 'encrypt.format=luks,encrypt.iter-time=10',
    differs: true,
  },
  {
    format: 'qcow2',
    size: '3M',
    options:
      'encrypt.format=luks,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=md5,encrypt.hash-alg=sha512,encrypt.iter-time=10,cluster_size=4k',
    differs: true,
  },
  { format: 'vmdk', size: '3M' },
  { format: 'vmdk', size: '100G', options: 'zeroed_grain=on,adapter_type=lsilogic' },
  { format: 'vmdk', size: '5G', options: 'subformat=twoGbMaxExtentSparse,hwversion=13' },
  { format: 'vmdk', size: '5G', options: 'subformat=twoGbMaxExtentFlat,toolsversion=10338' },
  { format: 'vmdk', size: '3M', options: 'subformat=monolithicFlat,adapter_type=buslogic' },
  { format: 'vmdk', size: '3M', options: 'subformat=streamOptimized,compat6=on', differs: true },
  { format: 'vmdk', size: '3M', base: 'vmdk', options: 'adapter_type=legacyESX' },
  { format: 'qcow', size: '9M' },
  { format: 'qcow', size: '1T' },
  { format: 'qcow', size: '3M', base: 'qcow2' },
]

for (const each of CASES) {
  const { format, size, options = '', base, differs } = each
  const title = `${format} ${size} ${options.slice(0, 60)} ${base ?? ''}`
  t.test(title, { ...needs('qemu-img', 'qemu-io') }, async t => {
    const folder = tempFolder(t)
    const [ours, theirs] = ['ours', 'theirs'].map(name => join(folder, name, `disk.${format}`)) as [
      string,
      string,
    ]
    for (const file of [ours, theirs]) {
      mkdirSync(dirname(file))
      if (base) await qemuImg('create', '-q', '-f', base, join(dirname(file), 'base'), '3M')
    }
    await createTheirs(theirs, each)
    await createOurs(ours, each)
    t.same(readdirSync(dirname(ours)), readdirSync(dirname(theirs)), 'the same files')
    t.same(await info(ours, each), await info(theirs, each), 'qemu-img info says the same')
    if (!differs) {
      for (const name of readdirSync(dirname(ours))) {
        const [a, b] = [ours, theirs].map(file => content(join(dirname(file), name)))
        t.same(a, b, `${name} has the same bytes`)
      }
    }
    if (parseDiskSize(size, '') === 0) return
    await bothWays(t, ours, each)
  })
}

async function createTheirs(file: string, { format, size, options, base }: Case): Promise<void> {
  const secret = ['--object', `secret,id=key,data=${PASSPHRASE}`]
  const key = options?.includes('encrypt') ? ',encrypt.key-secret=key' : ''
  const all = [
    ...(options ? ['-o', options + key] : []),
    ...(base ? ['-b', 'base', '-F', base] : []),
  ]
  await creating(['create', '-q', ...secret, '-f', format, ...all, file, size], {
    cwd: dirname(file),
  })
}

async function createOurs(file: string, { format, size, options = '', base }: Case): Promise<void> {
  const { options: known } = await creatorOf(format)
  await createImage(file, {
    format,
    sizeBytes: parseDiskSize(size, 'SIZE'),
    options: parseCreateOptions(known, [options], format),
    backing: base === undefined ? undefined : { name: 'base' },
    ...(options.includes('encrypt') && { passphrase: PASSPHRASE }),
  })
}

/** What qemu-img says, without what is random, measured or counts the blocks of files. */
async function info(file: string, { format }: Case): Promise<unknown> {
  const text = await run('qemu-img', ['info', '-f', format, '--output=json', file], {
    cwd: dirname(file),
  })
  const hidden = ['actual-size', 'cid', 'parent-cid', 'uuid', 'iters', 'master-key-iters']
  const plain = (key: string, value: unknown) => (hidden.includes(key) ? undefined : value)
  return JSON.parse(text.replaceAll(dirname(file), ''), plain)
}

/**
 * Returns the bytes of the file without random ones: the content ID of a vmdk, which QEMU writes without leading zeros.
 * Holes are not read, and blocks of zeros are left out.
 */
function content(file: string): unknown {
  const { size } = statSync(file)
  // Flat extents of so many bytes are holes.
  if (size >= 2 ** 31) return size
  const fd = openSync(file, 'r')
  try {
    const head = blockOf(fd, 0)
    const start = head.indexOf('# Disk DescriptorFile')
    if (start < 0) return [size, sha256(head), ...blocksFrom(fd, HEAD_BYTES)]
    const end = head.includes(0, start) ? head.indexOf(0, start) : head.length
    const text = head.toString('latin1', start, end).replace(/(CID=)[0-9a-f]+/gi, '$1')
    if (start === 0) return text
    const rest = [head.subarray(0, start), head.subarray(start + DESCRIPTOR_BYTES)].map(sha256)
    return [size, text, ...rest, ...blocksFrom(fd, HEAD_BYTES)]
  } finally {
    closeSync(fd)
  }
}

/** The descriptor of a vmdk is before this place. */
const HEAD_BYTES = 65536

/** The blocks from `from` on that have data other than zeros. */
function* blocksFrom(fd: number, from: number): Generator<string> {
  for (let at = from; ; at += HEAD_BYTES) {
    const data = seekExtent(fd, at, SEEK_DATA)
    if (data < 0) return
    at = data - (data % HEAD_BYTES)
    const block = blockOf(fd, at)
    if (block.some(byte => byte !== 0)) yield `${at} ${sha256(block)}`
  }
}

function blockOf(fd: number, at: number): Buffer {
  const block = Buffer.alloc(HEAD_BYTES)
  return block.subarray(0, readSync(fd, block, 0, HEAD_BYTES, at))
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** QEMU writes and vimgfs reads; then the reverse. */
async function bothWays(t: Test, file: string, { format, options = '' }: Case): Promise<void> {
  const key = options.includes('encrypt') ? ',encrypt.key-secret=key' : ''
  const source = ['--image-opts', `driver=${format},file.filename=${file}${key}`]
  const secret = ['--object', `secret,id=key,data=${PASSPHRASE}`]
  const qemu = (program: string, ...args: string[]) => run(program, args, { cwd: dirname(file) })
  const isStream = options.includes('streamOptimized')
  if (!isStream) {
    await qemu('qemu-io', ...secret, '-c', 'write -P 7 64k 128k', ...source)
  }
  const image = await openImage(file, {
    format,
    passphrase: PASSPHRASE,
    access: isStream ? 'read' : 'write',
  })
  const bytes = Buffer.alloc(128 * 1024)
  image.disk.read(bytes, 64 * 1024)
  t.ok(
    bytes.every(byte => byte === (isStream ? 0 : 7)),
    'vimgfs reads what QEMU wrote',
  )
  if (!isStream) image.disk.write(Buffer.alloc(100_000, 9), 500_000)
  image.close()
  if (isStream) return
  const read = await qemu(
    'qemu-io',
    ...secret,
    '-r',
    '-c',
    'read -P 9 500000 100000',
    '-c',
    'read -P 7 64k 128k',
    '-c',
    'read -P 0 300k 64k',
    ...source,
  )
  t.notMatch(read, /failed|rror/, 'QEMU reads what vimgfs wrote')
  if (format !== 'qcow2' && format !== 'vmdk') return
  if (/[fF]lat/.test(options)) return
  await qemu('qemu-img', 'check', '-q', ...secret, ...source)
}
