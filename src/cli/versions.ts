/** `vimgfs --version`: also what a report of a fault has to name. */
import { spawnSync } from 'node:child_process'
import os from 'node:os'
import { VERSION } from '../version.js'
import { print } from './output.js'

/** The hidden command that prints the version of FUSE alone. */
const FUSE_VERSION = 'fuse-version'
const TIMEOUT_MS = 5_000

export async function showVersions(): Promise<number> {
  const fuse = (await ownVersion()) ?? versionAsRoot() ?? 'of a version that only root can see'
  print(
    `vimgfs ${VERSION}\nNode ${process.version}, Linux ${os.release()} ${os.machine()}, FUSE ${fuse}\n`,
  )
  return 0
}

export async function run(): Promise<number> {
  const version = await ownVersion()
  if (version === undefined) return 1
  print(`${version}\n`)
  return 0
}

async function ownVersion(): Promise<string | undefined> {
  try {
    return (await import('../io/fuse-version.js')).fuseVersion()
  } catch {
    // The C library cannot be called here. The other versions help to find out why.
    return undefined
  }
}

/** Asks in a user namespace, where an ordinary user is root, if the machine allows one. */
function versionAsRoot(): string | undefined {
  const script = process.argv[1] as string
  const { stdout } = spawnSync(
    'unshare',
    ['--user', '--map-root-user', '--mount', '--', process.execPath, script, FUSE_VERSION],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: TIMEOUT_MS },
  )
  return /^[0-9]+\.[0-9]+$/m.exec(stdout ?? '')?.[0]
}
