/**
 * A small guest for QEMU, made from Debian's packages: a cloud kernel, the modules for a virtio disk with an ext4, and a
 * static busybox. Nothing is installed: the packages are fetched and unpacked into the user's cache, once.
 */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { basename, join } from 'node:path'
import { archive } from './cpio.js'
import { attempt, type Finished, run } from './run.js'

const META_PACKAGE = 'linux-image-cloud-amd64'
/** The modules for the guest's disk; their dependencies are added. crc32c is requested by name only. */
const MODULES = ['virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4']
const FOLDER = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'vimgfs-tests')

export interface Guest {
  readonly kernel: string
  readonly initrd: string
  readonly busybox: string
}

/** Returns the guest's parts. Fetches them if they are not there yet. Throws if that is not possible. */
export async function guest(): Promise<Guest> {
  const folder = join(FOLDER, 'guest-1')
  if (!existsSync(folder)) {
    mkdirSync(FOLDER, { recursive: true })
    const made = mkdtempSync(join(FOLDER, 'making-'))
    try {
      await make(made)
      renameSync(made, folder)
    } finally {
      rmSync(made, { recursive: true, force: true })
    }
  }
  const part = (name: string) => join(folder, name)
  return { kernel: part('kernel'), initrd: part('initrd'), busybox: part('busybox') }
}

async function make(folder: string): Promise<void> {
  const packages = join(folder, 'packages')
  const root = join(folder, 'root')
  mkdirSync(packages)
  const kernelPackage = await dependencyOf(META_PACKAGE)
  for (const name of [kernelPackage, 'busybox-static']) {
    await run('apt-get', ['download', '-q', name], { cwd: packages })
  }
  for (const name of readdirSync(packages)) {
    await run('dpkg-deb', ['--extract', join(packages, name), root])
  }
  const [kernel] = readdirSync(join(root, 'boot')).filter(name => name.startsWith('vmlinuz-'))
  copyFileSync(join(root, 'boot', kernel!), join(folder, 'kernel'))
  // Newer releases have a merged /usr.
  const [busybox] = ['bin/busybox', 'usr/bin/busybox'].filter(name => existsSync(join(root, name)))
  copyFileSync(join(root, busybox!), join(folder, 'busybox'))
  const modules = await modulesOf(root)
  writeFileSync(join(folder, 'initrd'), initrd(readFileSync(join(folder, 'busybox')), modules))
  for (const path of [packages, root]) rmSync(path, { recursive: true })
}

/** Returns the package with the kernel, whose name contains the version. */
async function dependencyOf(name: string): Promise<string> {
  const ask = () => attempt('apt-cache', ['depends', '--important', name])
  let { stdout } = await ask()
  if (!stdout.includes('Depends:')) {
    // A new machine has no lists of packages.
    await run('apt-get', ['-q', 'update'])
    stdout = (await ask()).stdout
  }
  const match = /Depends: (linux-image-\S+)/.exec(stdout)
  if (!match?.[1]) throw new Error(`${name} depends on no kernel: ${stdout}`)
  return match[1]
}

interface Module {
  readonly name: string
  readonly bytes: Buffer
}

/** Returns the modules in the order in which they can be loaded. Built-in ones have no file. */
async function modulesOf(root: string): Promise<Module[]> {
  const [folder] = ['lib/modules', 'usr/lib/modules']
    .map(name => join(root, name))
    .filter(existsSync)
  const paths = new Map<string, string>()
  for (const path of readdirSync(folder!, { recursive: true, encoding: 'utf8' })) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(path)?.[1]
    if (name) paths.set(name.replaceAll('-', '_'), join(folder!, path))
  }
  const loaded = new Map<string, Module>()
  const load = async (name: string): Promise<void> => {
    const path = paths.get(name)
    if (path === undefined || loaded.has(name)) return
    if (path.endsWith('.xz')) await run('xz', ['--decompress', path])
    const bytes = readFileSync(path.replace(/\.xz$/, ''))
    const depends = /\0depends=([^\0]*)\0/.exec(bytes.toString('latin1'))?.[1] ?? ''
    for (const other of depends.split(',')) await load(other.replaceAll('-', '_'))
    loaded.set(name, { name, bytes })
  }
  for (const name of MODULES) await load(name)
  return [...loaded.values()]
}

/** Returns an initrd that loads the modules and runs /init of the disk's file system. */
function initrd(busybox: Buffer, modules: readonly Module[]): Buffer {
  const script = [
    '#!/bin/busybox sh',
    'b=/bin/busybox',
    '$b mount -t devtmpfs none /dev',
    ...modules.map(({ name }) => `$b insmod /lib/${name}.ko`),
    'while ! [ -b /dev/vda ]; do $b sleep 0.1; done',
    '$b mount -t ext4 /dev/vda /disk || { echo "guest: no root"; $b poweroff -f; }',
    '$b mount --move /dev /disk/dev',
    'exec $b switch_root /disk /init',
  ]
  return archive([
    ...['bin', 'lib', 'dev', 'disk'].map(path => ({ path })),
    { path: 'bin/busybox', bytes: busybox },
    { path: 'init', bytes: Buffer.from(`${script.join('\n')}\n`) },
    ...modules.map(({ name, bytes }) => ({ path: `lib/${name}.ko`, bytes })),
  ])
}

/** Fills a folder that becomes the guest's root. The guest runs `script`, in which $b is busybox. */
export function rootFolder(folder: string, { busybox }: Guest, script: readonly string[]): void {
  for (const name of ['bin', 'dev', 'proc', 'sys', 'tmp', 'data']) {
    mkdirSync(join(folder, name), { recursive: true })
  }
  copyFileSync(busybox, join(folder, 'bin', basename(busybox)))
  const lines = ['#!/bin/busybox sh', 'b=/bin/busybox', '$b mount -t proc none /proc', ...script]
  writeFileSync(join(folder, 'init'), `${lines.join('\n')}\n$b poweroff -f\n`, { mode: 0o755 })
}

/**
 * Starts the guest from the raw disk `file`, without the page cache and without any network. Resolves to its output after it
 * has powered off. `words` go to its /proc/cmdline.
 */
export function boot({ kernel, initrd }: Guest, file: string, words: string): Promise<Finished> {
  // panic=-1: a kernel panic ends QEMU.
  const append = `console=ttyS0 quiet panic=-1 ${words}`
  return attempt('qemu-system-x86_64', [
    ...['-accel', 'tcg', '-machine', 'pc', '-m', '256', '-smp', '2', '-no-reboot'],
    ...['-nodefaults', '-no-user-config', '-nic', 'none', '-display', 'none'],
    ...['-serial', 'stdio', '-kernel', kernel, '-initrd', initrd, '-append', append],
    ...['-drive', `file=${file},format=raw,if=none,id=disk,cache=none,discard=unmap`],
    ...['-device', 'virtio-blk-pci,drive=disk'],
  ])
}
