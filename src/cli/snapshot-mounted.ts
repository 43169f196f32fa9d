/** `vimgfs snapshot` on an image that is mounted: the server changes it. */
import type { ServerConnection } from '../control/client.js'
import { filesOn, Freezer } from '../control/freezer.js'
import { receivedSnapshots } from '../control/received-list.js'
import { type StandingMount, standingOn } from '../control/standing-on.js'
import { MountError, printable } from '../errors.js'
import type { SnapshotInfo } from '../image/info.js'
import { ask, syncFiles } from './mounted.js'
import type { ProgressOptions } from './progress.js'

/** A change that the user asks for. Snapshots are named by `tags` and `ids`, or by their age. */
export interface MountedRequest extends ProgressOptions {
  readonly action: 'create' | 'delete' | 'rename' | 'revert'
  readonly tags: readonly string[]
  readonly ids: readonly string[]
  readonly olderThanSeconds: number | undefined
  /** The new tag of a snapshot. */
  readonly to: string
  readonly isDryRun: boolean
  readonly discards: boolean
  readonly waits: boolean
  readonly replaces: boolean
  readonly freezes: boolean
  /** Prints a remark on standard error. */
  readonly say: (line: string) => void
}

/** Returns lines that say what was done. Throws MountError. */
export async function changeMounted(
  server: ServerConnection,
  request: MountedRequest,
): Promise<string[]> {
  const { action, tags, ids, discards: discard } = request
  if (action === 'create') return create(server, request)
  if (action === 'delete') return remove(server, request)
  if (action === 'rename') {
    await ask(server, { do: 'rename', tags, ids, to: request.to }, request)
    return []
  }
  const kept = await ask(server, { do: 'revert', tags, ids, discard }, request)
  return typeof kept === 'string' ? [`the state before is kept as snapshot "${kept}"`] : []
}

/** Takes a snapshot of all that was written to the mount before. */
async function create(server: ServerConnection, request: MountedRequest): Promise<string[]> {
  const { device, diskFiles } = server.greeting
  const { tags, replaces: replace, freezes, quiet, say } = request
  const { mounts } = standingOn(device, diskFiles)
  const freezer = freezes ? await freezeAll(server, mounts) : undefined
  const remarks: string[] = []
  try {
    // Nothing is printed while file systems are frozen: the output may lead to one of them.
    await syncFiles(server, line => remarks.push(line))
    const tag = tags[0] as string
    await ask(server, { do: 'create', tag, replace }, freezer ? { quiet: true } : request)
  } finally {
    await freezer?.thaw()
    for (const remark of remarks) say(remark)
  }
  if (freezer) return frozenLines(mounts, freezer)
  if (mounts.length > 0 && quiet !== true) say(afterPowerCut(mounts))
  return []
}

async function freezeAll(
  { peer }: ServerConnection,
  mounts: readonly StandingMount[],
): Promise<Freezer> {
  const held = [...new Set([...filesOn(peer.pid, mounts), ...filesOn('self', mounts)])]
  if (held.length === 0) return await Freezer.freeze(mounts)
  throw new MountError(
    `--freeze would wait for ever: ${printable(held.join(', '))} lies on a file system that would be frozen, and the mount or this command needs it; leave --freeze out`,
  )
}

function frozenLines(mounts: readonly StandingMount[], { frozen }: Freezer): string[] {
  if (mounts.length === 0) return ['no mounted file system stands on the disk: none was frozen']
  const before = mounts.filter(mount => !frozen.includes(mount))
  return [
    ...(frozen.length > 0 ? [`frozen meanwhile: ${named(frozen)}`] : []),
    ...(before.length > 0 ? [`frozen before, and still: ${named(before)}`] : []),
  ]
}

const afterPowerCut = (mounts: readonly StandingMount[]): string =>
  `${named(mounts)} ${mounts.length > 1 ? 'are' : 'is'} in use: in the snapshot ${mounts.length > 1 ? 'they are' : 'it is'} as after a power cut; --freeze prevents that`

const named = (mounts: readonly StandingMount[]): string =>
  mounts.map(({ source, type, mountpoint }) => `${source} (${type} on ${mountpoint})`).join(', ')

async function remove(server: ServerConnection, request: MountedRequest): Promise<string[]> {
  const { tags, ids, olderThanSeconds: age, isDryRun: dryRun, waits: wait } = request
  const before = age === undefined ? 0 : Math.max(0, Math.floor(Date.now() / 1000) - age)
  const answer = await ask(
    server,
    { do: 'delete', tags, ids, byAge: age !== undefined, before, dryRun, wait },
    request,
  )
  if (age === undefined && !dryRun) return []
  return receivedSnapshots(answer).map(snapshot => deletionLine(snapshot, dryRun))
}

function deletionLine({ name, id, ...snapshot }: SnapshotInfo, isDryRun: boolean): string {
  const date = new Date(snapshot['date-sec'] * 1000).toISOString().slice(0, 10)
  return `${isDryRun ? 'would delete' : 'deleted'} snapshot "${name}" (ID ${id}, of ${date})`
}
