/**
 * Installs what a fresh clone lacks: npm packages, Debian packages, the compiled dist/.
 *
 * It is plain JavaScript without dependencies, since it runs before any is installed. It finds what is there already
 * without starting a process, so that it costs `npm start` and `npm test` nothing.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, readdirSync, readFileSync, statSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))
export const CLI = join(ROOT, 'dist/cli/main.js')

/** The Debian package that contains a command. */
const PACKAGE_OF = {
  automount: 'autofs',
  btrfs: 'btrfs-progs',
  bzip2: 'bzip2',
  chromium: 'chromium',
  cpio: 'cpio',
  cryptsetup: 'cryptsetup-bin',
  ddrescue: 'gddrescue',
  debugfs: 'e2fsprogs',
  e2fsck: 'e2fsprogs',
  fio: 'fio',
  fusermount3: 'fuse3',
  gcc: 'gcc',
  fish: 'fish',
  genisoimage: 'genisoimage',
  getfattr: 'attr',
  losetup: 'mount',
  lz4: 'lz4',
  mandoc: 'mandoc',
  mke2fs: 'e2fsprogs',
  'mkfs.btrfs': 'btrfs-progs',
  'mkfs.exfat': 'exfatprogs',
  'mkfs.ext4': 'e2fsprogs',
  'mkfs.f2fs': 'f2fs-tools',
  'mkfs.fat': 'dosfstools',
  'mkfs.ntfs': 'ntfs-3g',
  'mkfs.xfs': 'xfsprogs',
  mksquashfs: 'squashfs-tools',
  mkswap: 'util-linux',
  'mount.fuse3': 'fuse3',
  nbdcopy: 'libnbd-bin',
  nbdfuse: 'libnbd-bin',
  nbdinfo: 'libnbd-bin',
  nbdkit: 'nbdkit',
  nm: 'binutils',
  partx: 'util-linux',
  qcowmount: 'libqcow-utils',
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-storage-daemon': 'qemu-system-common',
  'qemu-system-x86_64': 'qemu-system-x86',
  rsync: 'rsync',
  setpriv: 'util-linux',
  sfdisk: 'fdisk',
  unshare: 'util-linux',
  vmdkmount: 'libvmdk-utils',
  xfs_repair: 'xfsprogs',
  xz: 'xz-utils',
  zip: 'zip',
  zsh: 'zsh',
  zstd: 'zstd',
}

/** Ends a script with one line for the user. A bug shows its stack instead. */
export class Stop extends Error {}

/** Runs a script's main function; a Stop becomes its line and exit code 1. */
export async function run(main) {
  try {
    process.exitCode = await main()
  } catch (error) {
    if (!(error instanceof Stop)) throw error
    console.error(error.message)
    process.exitCode = 1
  }
}

export function ensureNpmPackages() {
  if (npmPackagesMatchLockfile()) return
  step('Installing npm packages')
  // No package needs its install script: koffi comes with binaries, and dist/ is built separately.
  const npm = quiet('npm', 'ci', '--include=dev', '--ignore-scripts', '--no-audit', '--no-fund')
  if (!npm.ok) throw new Stop(`${npm.output}\nnpm ci failed: see above.`)
}

/** Installs the missing ones of these commands, if it may. Returns those that are still missing. */
export function ensureCommands(commands) {
  // An ordinary user's PATH lacks the folders of mke2fs and debugfs.
  process.env.PATH += `${delimiter}/usr/sbin${delimiter}/sbin`
  const missing = commands.filter(command => !onPath(command))
  const prefix = rootPrefix()
  if (missing.length === 0 || !onPath('apt-get') || !prefix) return missing

  const packages = packagesOf(missing)
  step(`Installing Debian packages: ${packages.join(' ')}`)
  const apt = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-y']
  const install = [...apt, 'install', '--no-install-recommends']
  const runs = [quiet(...apt, 'update')]
  // If a distribution lacks one package, install the others all the same.
  if (!quiet(...install, ...packages).ok) runs.push(...packages.map(p => quiet(...install, p)))
  for (const { ok, output } of runs) if (!ok) console.error(output)
  return missing.filter(command => !onPath(command))
}

/** Returns what the user has to do to get these commands. */
export function howToInstall(commands) {
  return onPath('apt-get')
    ? `it as root: apt-get install ${packagesOf(commands).join(' ')}`
    : `what your distribution has for ${commands.join(', ')}`
}

/** Reports whether `file`, a part of the build, is as new as all that it is made of. */
export function isBuilt(file) {
  const built = statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0
  // Folders count, too: removing a file changes its folder's time.
  const sources = readdirSync(join(ROOT, 'src'), { recursive: true }).map(name => `src/${name}`)
  sources.push('src', 'scripts/build.mjs', 'tsconfig.build.json', 'package-lock.json')
  return sources.every(path => statSync(join(ROOT, path)).mtimeMs <= built)
}

export function ensureBuilt() {
  if (isBuilt(CLI)) return
  step('Building')
  // The types are for other packages.
  const build = quiet(process.execPath, 'scripts/build.mjs', '--code')
  if (!build.ok) throw new Stop(`${build.output}\nThe build failed: see above.`)
}

export function onPath(command) {
  return process.env.PATH.split(delimiter).some(folder => {
    try {
      accessSync(join(folder, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** Compares with npm's own record of what it installed, which says more than time stamps. */
function npmPackagesMatchLockfile() {
  const packages = path => JSON.parse(readFileSync(join(ROOT, path), 'utf8')).packages
  const wanted = packages('package-lock.json')
  let installed
  try {
    installed = packages('node_modules/.package-lock.json')
  } catch {
    return false
  }
  // Optional packages include those of other platforms.
  return Object.entries(wanted).every(
    ([path, { version, optional }]) =>
      path === '' || optional || installed[path]?.version === version,
  )
}

function rootPrefix() {
  if (process.getuid() === 0) return []
  return onPath('sudo') && quiet('sudo', '-n', 'true').ok ? ['sudo', '-n'] : undefined
}

function packagesOf(commands) {
  return [...new Set(commands.map(command => PACKAGE_OF[command]))]
}

function step(text) {
  console.error(`${text} …`)
}

/** Runs a command whose output matters only if it fails. */
function quiet(command, ...args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: ROOT,
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = error ? `${command}: ${error.message}` : `${stdout}${stderr}`.trim()
  return { ok: status === 0, output }
}
