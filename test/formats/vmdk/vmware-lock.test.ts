/** VMware's locks: how their files are read, and which owner they name. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import {
  type Here,
  isSameMachine,
  type LockRecord,
  parseLock,
  vmwareLocks,
} from '../../../src/formats/vmdk/vmware-lock.js'
import { foldersOf, holding } from '../../support/folders.js'
import { holds } from '../../support/property.js'
import { run, tempFolder } from '../../support/run.js'

const locksOf = (image: string, here?: Here) =>
  holding(foldersOf(image), folders => vmwareLocks(image, folders, here))

/** 512 bytes, as VMware's programs write them. */
function member(text: string): Buffer {
  const bytes = Buffer.alloc(512)
  bytes.write(text)
  return bytes
}

/** The hash of "workstation", 00:50:56:c0:00:08, and 2 NULs. */
const MACHINE = Buffer.from('00000000005056c000080000', 'hex')
MACHINE.writeUInt32LE(
  [...'workstation'].reduce((h, c) => (h * 33 + c.charCodeAt(0)) % 2 ** 32, 5381),
)
const idOf = (bytes: Buffer) => bytes.toString('base64').replaceAll('/', '-')
const ID = idOf(MACHINE)
const WITHOUT_MAC = idOf(Buffer.concat([MACHINE.subarray(0, 4), Buffer.alloc(8)]))
const HERE: Here = {
  hostName: 'workstation',
  macs: ['00:00:00:00:00:00', '00:50:56:C0:00:08'],
  seesAllProcesses: true,
}

const parsed: { title: string; text: string; expected: LockRecord | undefined }[] = [
  {
    title: 'a lock for writing',
    text: `${ID} 4711-3470942(vmware-vmx) 1 X 3470942 lc=2090737655`,
    expected: {
      machine: ID,
      process: { pid: 4711, start: 3470942n, program: 'vmware-vmx' },
      writes: true,
    },
  },
  {
    title: 'a lock for reading, of Windows',
    text: 'uuid=4c-4c-45-44 8-132514318071250000(vmware-vmx.exe) 12 S 132514318071250000 lc=1',
    expected: {
      machine: 'uuid=4c-4c-45-44',
      process: { pid: 8, start: 132514318071250000n, program: 'vmware-vmx.exe' },
      writes: false,
    },
  },
  {
    title: 'a process without a name, and without a start',
    text: 'm 4711-0 0 X 0 lc=1',
    expected: {
      machine: 'm',
      process: { pid: 4711, start: undefined, program: undefined },
      writes: true,
    },
  },
  {
    title: 'a name with parentheses',
    text: 'm 1-2(a_(b)_c) 0 X 2',
    expected: { machine: 'm', process: { pid: 1, start: 2n, program: 'a_(b)_c' }, writes: true },
  },
  {
    title: 'an older lock',
    text: 'm 4711 3 X 99 lc=1',
    expected: {
      machine: 'm',
      process: { pid: 4711, start: 99n, program: undefined },
      writes: true,
    },
  },
  {
    title: 'an older lock without a start',
    text: 'm 4711 3 X [ lc=1',
    expected: {
      machine: 'm',
      process: { pid: 4711, start: undefined, program: undefined },
      writes: true,
    },
  },
  {
    title: 'an older lock without properties',
    text: 'm 4711 3 X 99',
    expected: {
      machine: 'm',
      process: { pid: 4711, start: undefined, program: undefined },
      writes: true,
    },
  },
  {
    title: 'the least that there is',
    text: 'm 4711(vmx) 3 S',
    expected: {
      machine: 'm',
      process: { pid: 4711, start: undefined, program: 'vmx' },
      writes: false,
    },
  },
  {
    title: 'blanks',
    text: '  m   5-6  0  X   6 ',
    expected: { machine: 'm', process: { pid: 5, start: 6n, program: undefined }, writes: true },
  },
  ...['0-1', '2147483648-1', '99999999999-1', '-5-1', 'vmx', '(vmx)'].map(id => ({
    title: `no process: ${id}`,
    text: `m ${id} 0 X 1`,
    expected: { machine: 'm', process: undefined, writes: true },
  })),
  { title: 'nothing', text: '', expected: undefined },
  { title: 'three words', text: 'm 1-2 0', expected: undefined },
  { title: 'another type', text: 'm 1-2 0 W 2', expected: undefined },
  { title: 'a number that is none', text: 'm 1-2 x X 2', expected: undefined },
  { title: 'many words', text: `m 1-2 0 X 2${' a=b'.repeat(12)}`, expected: undefined },
  { title: 'words after a NUL', text: 'm 1-2 0\0 X 2', expected: undefined },
]
for (const { title, text, expected } of parsed) {
  t.test(`reads ${title}`, async t => {
    t.strictSame(parseLock(member(text)), expected)
    t.strictSame(parseLock(Buffer.from(text)), expected, 'without NULs')
  })
}

t.test('machines', async t => {
  const id = (change: (bytes: Buffer) => void): string => {
    const bytes = Buffer.from(MACHINE)
    change(bytes)
    return idOf(bytes)
  }
  t.ok(isSameMachine(ID, HERE))
  t.ok(isSameMachine(ID, { ...HERE, hostName: 'renamed' }), 'by its address')
  t.notOk(isSameMachine(ID, { ...HERE, macs: ['00:50:56:c0:00:09'] }))
  t.notOk(isSameMachine(ID, { ...HERE, macs: [] }))
  t.ok(isSameMachine(WITHOUT_MAC, HERE), 'by its name')
  t.notOk(isSameMachine(WITHOUT_MAC, { ...HERE, hostName: 'workstation2' }))
  t.ok(isSameMachine('AAAAAAAAAAAAAAAA', HERE), 'cannot be told apart')
  const slashes = id(bytes => bytes.fill(0xff, 4, 10))
  t.match(slashes, /-/)
  t.ok(isSameMachine(slashes, { ...HERE, macs: ['ff:ff:ff:ff:ff:ff'] }))
  for (const other of ['uuid=44454c4c', 'uuid=', '', 'AAAA', `${ID}AAAA`, 'not Base64 at all']) {
    t.notOk(isSameMachine(other, HERE), other)
  }
})

/** A disk with a folder of locks. */
function disk(t: Test) {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  fs.writeFileSync(image, '')
  const lock = `${image}.lck`
  fs.mkdirSync(lock)
  const put = (name: string, content: string | Buffer) =>
    fs.writeFileSync(join(lock, name), content)
  /** Each as one word, or two. */
  const found = (here = HERE) =>
    locksOf(image, here).map(
      ({ isLive, writes }) => `${isLive ? 'live' : 'stale'}${writes ? '' : ' reader'}`,
    )
  return { folder, image, lock, put, found }
}

const startOf = (pid: number): string =>
  (fs.readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1) as string).split(
    ' ',
  )[19] as string

/** The id of a process that has ended. */
async function deadPid(): Promise<number> {
  const child = spawn('true')
  await once(child, 'exit')
  return child.pid as number
}

t.test('processes of this machine', async t => {
  const { put, found, image, lock } = disk(t)
  const start = startOf(process.pid)
  const dead = await deadPid()
  const cases: { id: string; is: string }[] = [
    { id: `${process.pid}-${start}(node)`, is: 'live' },
    { id: `${process.pid}-${BigInt(start) + 1n}(node)`, is: 'stale' },
    { id: `${process.pid}-0`, is: 'live' },
    { id: `${process.pid}(node)`, is: 'live' },
    { id: `1-${startOf(1)}(init)`, is: 'live' },
    { id: `${dead}-${start}(vmware-vmx)`, is: 'stale' },
    { id: `${dead}`, is: 'stale' },
    { id: 'vmware-vmx', is: 'live' },
  ]
  for (const { id, is } of cases) {
    for (const machine of [ID, WITHOUT_MAC]) {
      put('M00001.lck', member(`${machine} ${id} 1 X ${start} lc=1 a=b`))
      t.strictSame(found(), [is], `${machine} ${id}`)
      t.strictSame(found({ ...HERE, seesAllProcesses: false }), ['live'], 'in a container')
      t.strictSame(found({ ...HERE, hostName: 'x', macs: [] }), ['live'], 'elsewhere')
    }
  }
  const { title } = process
  process.title = 'a) R 1 (b) 2'
  t.teardown(() => {
    process.title = title
  })
  put('M00001.lck', member(`${ID} ${process.pid}-${start}(a)_R_1_(b) 1 X ${start} lc=1`))
  t.strictSame(found(), ['live'], 'a name with parentheses')
  put('M00001.lck', member(`${ID} ${dead} 1 X ${start} lc=1`))
  t.strictSame(found(), ['stale'])
  put('M00001.lck', member(`${ID} ${process.pid} 1 S ${start} lc=1`))
  t.strictSame(found(), ['live reader'], 'an older lock')
  put('M00001.lck', member(`${ID} ${process.pid} 1 S ${start}9 lc=1`))
  t.strictSame(locksOf(image, HERE), [
    {
      path: join(lock, 'M00001.lck'),
      isLive: false,
      owner: `process ${process.pid}`,
      writes: false,
    },
  ])
})

t.test('this machine as it is', async t => {
  const { put, image } = disk(t)
  const [mac] = fs
    .readdirSync('/sys/class/net')
    .map(name => fs.readFileSync(`/sys/class/net/${name}/address`, 'latin1').trim())
    .filter(address => /^(?!00:00)..(:..){5}$/.test(address))
  const name = Buffer.alloc(12)
  name.writeUInt32LE([...Buffer.from(os.hostname())].reduce((h, c) => (h * 33 + c) % 2 ** 32, 5381))
  const ids = [idOf(name)]
  if (mac) ids.push(idOf(Buffer.from(`01020304${mac.replaceAll(':', '')}0000`, 'hex')))
  const seesAll = fs.readlinkSync('/proc/self/ns/pid') === 'pid:[4026531836]'
  const dead = await deadPid()
  for (const id of ids) {
    const start = startOf(process.pid)
    put('M00001.lck', member(`${id} ${process.pid}-${start}(node) 1 X ${start} lc=1`))
    t.equal(locksOf(image)[0]?.isLive, true)
    put('M00001.lck', member(`${id} ${dead}-${start}(node) 1 X ${start} lc=1`))
    t.equal(locksOf(image)[0]?.isLive, !seesAll)
  }
})

t.test('who holds it', async t => {
  const { put, image } = disk(t)
  const owner = (text: string): string => {
    put('M00001.lck', member(text))
    return locksOf(image, HERE)[0]?.owner as string
  }
  t.equal(owner(`${ID} 1-2(vmware-vmx) 1 X 2`), 'vmware-vmx (process 1)')
  t.equal(owner(`${ID} 1-2 1 X 2`), 'process 1')
  t.equal(owner(`${ID} ? 1 X 2`), 'a program')
  t.equal(
    owner('uuid=4c-4c 8-9(vmware-vmx.exe) 1 X 2'),
    'vmware-vmx.exe (process 8 of another machine, uuid=4c-4c)',
  )
  t.equal(owner('uuid=4c-4c 8-9 1 X 2'), 'process 8 of another machine, uuid=4c-4c')
  t.equal(owner('uuid=4c-4c ? 1 X 2'), 'a program of another machine, uuid=4c-4c')
  t.equal(owner('nonsense'), 'a program that is not known')
  t.equal(owner(`${ID} 1-2(a\x1b[2J\nb) 1 X 2`), 'a\\x1b[2J\\x0ab (process 1)')
  t.equal(owner(`${ID} 1-2(${'x'.repeat(480)}) 1 X 2`).length, 300)
})

t.test('what a folder of locks may hold', async t => {
  const { put, found, lock, image } = disk(t)
  t.strictSame(found(), [], 'nothing')
  const dead = await deadPid()
  const stale = member(`${ID} ${dead}-5(vmware-vmx) 1 X 5 lc=1`)
  for (const name of [
    'E00001.lck',
    'M0001.lck',
    'M00001',
    'm00001.lck',
    'xM00001.lck',
    'M00001.lck~',
  ]) {
    put(name, stale)
  }
  t.strictSame(found(), [], 'other names')
  put('M00001.lck', stale)
  t.strictSame(found(), ['stale'])
  put('M00002.lck', '')
  put('M00003.lck', Buffer.alloc(512))
  put('M00004.lck', Buffer.alloc(512, 0xff))
  put('M00005.lck', Buffer.concat([stale, Buffer.alloc(4096)]))
  fs.mkdirSync(join(lock, 'M00006.lck'))
  await run('mkfifo', [join(lock, 'M00007.lck')])
  fs.symlinkSync('M00001.lck', join(lock, 'M00008.lck'))
  t.strictSame(found(), ['stale', ...Array.from({ length: 7 }, () => 'live')])
  t.equal(locksOf(image, HERE)[1]?.owner, 'a program that is not known')
  put('M00009x.lck', stale.subarray(0, 60))
  t.equal(found().at(-1), 'stale', 'of another size')
})

t.test('a program that is about to take it', async t => {
  const { found, lock } = disk(t)
  const entry = join(lock, 'D12345.lck')
  fs.mkdirSync(entry)
  t.strictSame(found(), ['live'])
  const seconds = Date.now() / 1000
  fs.utimesSync(entry, seconds, seconds - 9)
  t.strictSame(found(), ['stale'])
  fs.utimesSync(entry, seconds, seconds + 3600)
  t.strictSame(found(), ['live'], 'its clock is ahead')
})

t.test('many members', async t => {
  const { put, image, lock } = disk(t)
  const dead = await deadPid()
  for (let i = 0; i < 64; i++) put(`M${10_000 + i}.lck`, member(`${ID} ${dead}-5 1 X 5`))
  t.equal(locksOf(image, HERE).length, 64)
  for (let i = 64; i < 100; i++) put(`M${10_000 + i}.lck`, member(`${ID} ${dead}-5 1 X 5`))
  const found = locksOf(image, HERE)
  t.equal(found.filter(({ isLive }) => !isLive).length, 64)
  t.strictSame(found.at(-1), { path: lock, isLive: true, owner: '36 more programs', writes: true })
  t.equal(found.length, 65)
})

t.test('no folder of locks', async t => {
  const { folder, image, lock, found, put } = disk(t)
  fs.rmdirSync(lock)
  t.strictSame(found(), [])
  const missing = [
    join(folder, 'missing.vmdk'),
    join(image, 'below'),
    join(folder, 'x'.repeat(255)),
  ]
  for (const path of missing) t.strictSame(locksOf(path, HERE), [])
  fs.writeFileSync(lock, '')
  t.strictSame(found(), ['live'], 'a file')
  fs.rmSync(lock)
  await run('mkfifo', [lock])
  t.strictSame(found(), [], 'a FIFO')
  fs.rmSync(lock)
  fs.symlinkSync('nowhere', lock)
  t.strictSame(found(), [], 'a link to nothing')
  fs.rmSync(lock)
  fs.symlinkSync('disk.vmdk.lck', lock)
  t.strictSame(found(), ['live'], 'a loop')
  fs.rmSync(lock)
  fs.mkdirSync(join(folder, 'locks'))
  fs.symlinkSync('locks', lock)
  t.strictSame(found(), [], 'a link to a folder below')
  put('M00001.lck', '')
  t.strictSame(found(), ['live'])
  fs.rmSync(lock)
  const other = tempFolder(t)
  fs.symlinkSync(other, lock)
  const [outside] = locksOf(image, HERE)
  t.match(outside, { path: lock, isLive: true }, 'a link that leads out is not followed')
})

t.test('an image that was given by a link', async t => {
  const { folder, image, lock, put } = disk(t)
  const link = join(folder, 'link.vmdk')
  fs.symlinkSync('disk.vmdk', link)
  const paths = () => locksOf(link, HERE).map(({ path }) => path)
  t.strictSame(paths(), [])
  put('M00001.lck', '')
  t.strictSame(paths(), [join(lock, 'M00001.lck')], 'beside the file')
  fs.mkdirSync(`${link}.lck`)
  fs.writeFileSync(`${link}.lck/M00002.lck`, '')
  t.strictSame(paths(), [`${link}.lck/M00002.lck`, join(lock, 'M00001.lck')], 'beside both')
  t.equal(locksOf(image, HERE).length, 1)
})

t.test('any content', async t => {
  const { put, image } = disk(t)
  const words = fc.array(
    fc.oneof(
      fc.constantFrom(
        ID,
        'X',
        'S',
        '0',
        '1-2',
        '1-2(a)',
        '(',
        'lc=1',
        '\0',
        '\x1b',
        '9'.repeat(40),
      ),
      fc.string({ maxLength: 20 }),
    ),
    { maxLength: 20 },
  )
  const content = fc.oneof(
    words.map(list => Buffer.from(list.join(' '))),
    fc.uint8Array({ maxLength: 600 }).map(bytes => Buffer.from(bytes)),
  )
  const runs = await holds(content, 400, bytes => {
    put('M00001.lck', bytes)
    const [lock, ...others] = locksOf(image, HERE)
    if (!lock || others.length > 0) throw new Error('one member is one lock')
    if (lock.owner.length > 300 || /[\x00-\x1f\x7f-\x9f]/.test(lock.owner))
      throw new Error(lock.owner)
    if (!parseLock(bytes) && !lock.isLive) throw new Error('what is not understood is live')
  })
  t.ok(runs >= 200, `${runs} runs`)
})
