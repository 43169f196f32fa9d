/**
 * The servers that are compared. A definition says whether the server can run here and how to start it. mount() does what
 * they have in common and measures the time to the first answer.
 *
 *   find(context)    returns why it cannot run here, or undefined; may install or compile what it needs
 *   launch(job)      starts it; job is { image, dir, mountPoint, context, writable }
 *   file(job)        returns where the disk appears
 *   raw              it knows no formats and gets the same disk as a raw file
 *   parts            the parts of a run (run.mjs) that it takes part in; without it, all
 */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  detachLoops,
  has,
  isAlive,
  isRoot,
  kill,
  mountsBelow,
  pidsMentioning,
  pidsServing,
  run,
  sleep,
  start,
  unmountLazily,
} from './workplace.mjs'

const HERE = path.dirname(fileURLToPath(import.meta.url))
export const CLI = process.env.VIMGFS ?? path.resolve(HERE, '../../dist/cli/main.js')
const CLI_BEFORE = process.env.VIMGFS_BEFORE
const FLOOR_THREADS = '2'
const FUSE_NATIVE = 'fuse-native@2.2.6'
const ANSWER_TIMEOUT_MS = 60_000
const END_TIMEOUT_MS = 10_000

const needs = async (...commands) => {
  for (const command of commands) if (!(await has(command))) return `${command} is not installed`
}

function launchVimgfs(program, { image, mountPoint, writable }, ...options) {
  // It goes to the background by itself; its exit code says whether it has mounted.
  const secret = image.passphrase ? ['--passphrase-file', image.passphrase] : []
  const access = writable === 'scratch' ? ['-o', 'scratch'] : writable ? [] : ['-o', 'ro']
  const raw = image.format === 'raw' ? ['--format', 'raw', '-o', 'passthrough=on'] : []
  const args = ['mount', ...raw, ...options, ...secret, ...access, image.file, mountPoint]
  return { command: run(process.execPath, [program, ...args]) }
}

export const vimgfs = {
  id: 'vimgfs',
  title: 'vimgfs',
  async find() {
    if (!fs.existsSync(CLI)) return 'it is not built (npm run build)'
  },
  launch: job => launchVimgfs(CLI, job),
  file: ({ image, mountPoint }) => path.join(mountPoint, `${image.id}.raw`),
  async unmount({ mountPoint }) {
    await run(process.execPath, [CLI, 'umount', mountPoint], { timeoutMs: END_TIMEOUT_MS })
  },
}

const vimgfsBefore = {
  ...vimgfs,
  id: 'vimgfs-before',
  title: 'vimgfs ($VIMGFS_BEFORE)',
  async find() {
    if (!fs.existsSync(CLI_BEFORE)) return `there is no ${CLI_BEFORE}`
  },
  launch: job => launchVimgfs(CLI_BEFORE, job),
}

const vimgfsPlain = {
  ...vimgfs,
  id: 'vimgfs-plain',
  title: 'vimgfs, passthrough=off',
  parts: ['rawRead', 'reflinkRead'],
  launch: job => launchVimgfs(CLI, job, '-o', 'passthrough=off'),
}

const vimgfsWriteback = {
  ...vimgfs,
  id: 'vimgfs-writeback',
  title: 'vimgfs, writeback',
  parts: ['write'],
  launch: job => launchVimgfs(CLI, job, '-o', 'writeback'),
}

/** The limit of passthrough: no server at all. */
const rawFile = {
  id: 'raw',
  title: 'the file itself',
  isFile: true,
  parts: ['rawRead', 'reflinkRead'],
  async find() {},
  launch: () => ({}),
  file: ({ image }) => image.raw,
}

const vimgfsByLibfuse = {
  ...vimgfs,
  id: 'vimgfs-libfuse',
  title: 'vimgfs, libfuse',
  parts: ['read', 'write'],
  async find(context) {
    const why = await vimgfs.find(context)
    if (why) return why
    const test = `require('module').createRequire(process.argv[1])('fuse-native')`
    const { code } = await run(process.execPath, ['-e', test, CLI], { mayFail: true })
    if (code !== 0) return 'the package fuse-native is not installed'
  },
  launch: job => launchVimgfs(CLI, job, '--transport', 'libfuse'),
}

const floor = {
  id: 'floor',
  title: 'floor (C)',
  raw: true,
  parts: [
    ...['read', 'write', 'rawRead', 'vmdkRead', 'vmdkWrite', 'encryptedRead', 'encryptedWrite'],
    'mount',
  ],
  async find({ place }) {
    if (!isRoot) return 'it calls mount(2), which needs root'
    const compiler = await findCompiler()
    if (!compiler) return 'there is no C compiler'
    floor.program = place.path('floor')
    const args = ['-O2', '-pthread', path.join(HERE, 'floor.c'), '-o', floor.program]
    const { code, stderr } = await run(compiler, args, { mayFail: true })
    if (code !== 0) return `floor.c does not compile: ${stderr.split('\n')[0]}`
  },
  launch({ image, mountPoint }) {
    return { child: start(floor.program, [image.raw, mountPoint, FLOOR_THREADS]) }
  },
  file: ({ mountPoint }) => path.join(mountPoint, 'disk.raw'),
}

async function findCompiler() {
  for (const name of ['gcc', 'cc', 'clang']) if (await has(name)) return name
  if (!(await has('apt-get'))) return undefined
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const options = { env, mayFail: true, timeoutMs: 300_000 }
  await run('apt-get', ['update'], options)
  await run('apt-get', ['install', '-y', '--no-install-recommends', 'gcc', 'libc6-dev'], options)
  return (await has('gcc')) ? 'gcc' : undefined
}

/**
 * qemu-storage-daemon's FUSE export, in settings of which each could be the best. The best one differs from case to case,
 * so calibrate() in run.mjs tries them all. QEMU 10.2 was the first with more than one iothread for an export; a daemon
 * drops out of a setting that it does not know.
 *
 * The daemon allocates each request's buffer with malloc. glibc maps and unmaps each buffer of 128 KiB and more until a
 * larger one has been freed. So a daemon that has answered 1 MiB direct reads answers buffered ones (128 KiB each) twice as
 * fast from then on. Each case has new daemons, with their default allocator. To see them with a tuned one, let $QSD name a
 * script that sets GLIBC_TUNABLES to glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864 and execs
 * the daemon.
 */
const QSD_SETTINGS = {
  default: {},
  iothread: { threads: 1 },
  '2 iothreads': { threads: 2 },
  io_uring: { block: ',file.aio=io_uring' },
  'io_uring, iothread': { block: ',file.aio=io_uring', threads: 1 },
  'direct, native': { block: ',cache.direct=on,file.aio=native' },
  'direct, native, iothread': { block: ',cache.direct=on,file.aio=native', threads: 1 },
}

function storageDaemons(id, title, program) {
  return Object.entries(QSD_SETTINGS).map(([setting, { block = '', threads = 0 }]) => ({
    id: `${id}/${setting}`,
    family: id,
    title,
    setting,
    async find() {
      return needs(program)
    },
    launch({ image, mountPoint, file, writable }) {
      fs.rmdirSync(mountPoint)
      fs.writeFileSync(file, '') // it mounts on a regular file
      const objects = Array.from({ length: threads }, (_, i) => ['--object', `iothread,id=t${i}`])
      const iothread = ['', ',iothread=t0', ',iothread.0=t0,iothread.1=t1'][threads]
      const { passphrase } = image
      if (passphrase) objects.push(['--object', `secret,id=secret,file=${passphrase}`])
      const key = passphrase ? ',encrypt.format=luks,encrypt.key-secret=secret' : ''
      const args = [
        ...objects.flat(),
        '--blockdev',
        `driver=${image.format},node-name=disk,read-only=${writable ? 'off' : 'on'},file.driver=file,file.filename=${image.file}${key}${block}`,
        '--export',
        `type=fuse,id=fuse,node-name=disk,mountpoint=${file},writable=${writable ? 'on' : 'off'}${iothread}`,
      ]
      return { child: start(program, args) }
    },
    file: ({ mountPoint }) => mountPoint,
  }))
}

/** libyal's servers, one for each format: they go to the background and only read. */
const libyalServer = (id, name, parts) => ({
  id,
  title: `${id} (libyal)`,
  parts,
  async find() {
    return needs(id)
  },
  launch: ({ image, mountPoint }) => ({ command: run(id, [image.file, mountPoint]) }),
  file: ({ mountPoint }) => path.join(mountPoint, name),
})

const qcowmount = libyalServer('qcowmount', 'qcow1', ['read', 'mount', 'memory'])
const vmdkmount = libyalServer('vmdkmount', 'vmdk1', ['vmdkRead'])

const nbdfuse = {
  id: 'nbdfuse',
  title: 'nbdfuse, qemu-nbd',
  parts: ['read', 'vmdkRead', 'mount', 'memory'],
  async find() {
    return needs('nbdfuse', 'qemu-nbd')
  },
  launch({ image, dir, mountPoint }) {
    const socket = path.join(dir, 'nbd.sock')
    // A socket, never a port. nbdfuse opens four connections if the server allows as many.
    const args = ['-r', '-t', '-e', '8', '-f', image.format, '-k', socket, image.file]
    const server = start('qemu-nbd', args)
    const command = waitFor(() => fs.existsSync(socket), 5000).then(() => {
      const uri = `nbd+unix:///?socket=${socket}`
      launched.child = start('nbdfuse', ['-r', path.join(mountPoint, 'nbd'), uri])
    })
    const launched = { child: server, command }
    return launched
  },
  file: ({ mountPoint }) => path.join(mountPoint, 'nbd'),
}

const fuseNative = {
  id: 'fuse-native',
  title: 'fuse-native, memory',
  raw: true,
  parts: ['read'],
  async find({ place }) {
    if (!isRoot && !(await has('fusermount'))) return 'its libfuse 2 needs fusermount'
    // A folder for the time of the run, because the project does not depend on this package.
    const folder = place.folder('npm')
    fs.writeFileSync(path.join(folder, 'package.json'), '{"private":true}')
    const args = ['install', '--no-audit', '--no-fund', '--ignore-scripts', FUSE_NATIVE]
    const { code, stderr } = await run('npm', args, { cwd: folder, mayFail: true })
    if (code !== 0) return `npm can't install it: ${stderr.trim().split('\n')[0]}`
    const test = `require('fuse-native')`
    const loaded = await run(process.execPath, ['-e', test], { cwd: folder, mayFail: true })
    if (loaded.code !== 0) return `it can't be loaded: ${/Error:.*/.exec(loaded.stderr)?.[0]}`
    fuseNative.folder = folder
  },
  launch({ image, mountPoint }) {
    const script = path.join(HERE, 'fuse-native-server.mjs')
    const args = [script, fuseNative.folder, image.raw, mountPoint]
    return { child: start(process.execPath, args) }
  },
  file: ({ mountPoint }) => path.join(mountPoint, 'disk.raw'),
}

export const takesPart = ({ parts }, part) => !parts || parts.includes(part)

/** Returns the definitions that the run needs and that can run here. Tells `skip` about the others and why. */
export async function findServers(context, skip) {
  const newer = process.env.QSD
  const all = [
    vimgfs,
    ...(CLI_BEFORE ? [vimgfsBefore] : []),
    vimgfsPlain,
    vimgfsWriteback,
    rawFile,
    vimgfsByLibfuse,
    floor,
    ...storageDaemons('qsd', 'qemu-storage-daemon', 'qemu-storage-daemon'),
    ...(newer ? storageDaemons('qsd-given', 'qemu-storage-daemon ($QSD)', newer) : []),
    qcowmount,
    vmdkmount,
    nbdfuse,
    fuseNative,
  ]
  const found = []
  const told = new Set()
  for (const server of all) {
    const family = server.family ?? server.id
    if (context.only.length > 0 && !context.only.includes(family)) continue
    if (!context.parts.some(part => takesPart(server, part))) continue
    const why = await server.find(context)
    if (!why) found.push(server)
    else if (!told.has(family)) skip(server.title, why)
    if (why) told.add(family)
  }
  return found
}

/** Starts a server on an image, and returns when the disk's size can be seen. */
export async function mount(server, image, context, { writable = false } = {}) {
  const dir = context.place.folder(server.id.replace(/\W+/g, '-'))
  const mountPoint = path.join(dir, 'mnt')
  fs.mkdirSync(mountPoint)
  const job = { image, dir, mountPoint, context, writable }
  job.file = server.file(job)
  const before = new Set(pidsServing())

  const begun = performance.now()
  const launched = server.launch(job)
  let failure
  let commandMs
  launched.command?.then(
    () => (commandMs = performance.now() - begun),
    error => (failure = error),
  )
  const answered = async () => {
    if (failure) throw failure
    const { child } = launched
    if (child && child.exitCode !== null) throw new Error(child.said.trim() || 'it ended at once')
    const status = await fs.promises.stat(job.file).catch(() => undefined)
    return status?.isFile() && status.size === image.sizeBytes
  }
  const mounted = { server, ...job, stop: () => stop(mounted) }
  try {
    await waitFor(answered, ANSWER_TIMEOUT_MS)
    mounted.answerMs = performance.now() - begun
    await launched.command
    mounted.commandMs = commandMs
  } catch (error) {
    mounted.pids = pidsMentioning(dir)
    await stop(mounted).catch(() => {})
    throw error
  }
  // A server that went to the background may have changed its command line.
  mounted.pids = pidsMentioning(`${dir}/`)
  if (mounted.pids.length === 0) mounted.pids = pidsServing().filter(pid => !before.has(pid))
  return mounted
}

async function stop({ server, dir, mountPoint, pids, ...job }) {
  detachLoops(dir)
  if (server.unmount) await server.unmount({ mountPoint, ...job }).catch(() => {})
  for (const point of mountsBelow(dir)) unmountLazily(point)
  // Some end when they are unmounted; the others get SIGTERM, and then SIGKILL.
  for (const [waitMs, signal] of [
    [200, 'SIGTERM'],
    [END_TIMEOUT_MS, 'SIGKILL'],
  ]) {
    await waitFor(() => !pids.some(isAlive), waitMs, 5).catch(() => {})
    for (const pid of pids) if (isAlive(pid)) kill(pid, signal)
  }
  await waitFor(() => !pids.some(isAlive), END_TIMEOUT_MS, 5)
  fs.rmSync(dir, { recursive: true, force: true })
}

async function waitFor(condition, timeoutMs, everyMs = 1) {
  const end = performance.now() + timeoutMs
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`no answer after ${timeoutMs} ms`)
    await sleep(everyMs)
  }
}

/** Reads or sets the kernel's readahead of a mount, in the sysfs file of its device. */
export async function readaheadKb(mounted, value) {
  const { dev } = await fs.promises.stat(mounted.file)
  // dev_t as the kernel packs it for user space; a FUSE mount's major is 0.
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00)
  const setting = `/sys/class/bdi/${(dev >>> 8) & 0xfff}:${minor}/read_ahead_kb`
  if (value !== undefined) fs.writeFileSync(setting, String(value))
  return Number(fs.readFileSync(setting, 'utf8'))
}
