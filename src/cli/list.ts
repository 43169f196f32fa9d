/** `vimgfs list`: shows the mounts of this user, or for root those of all. */
import { connectToMount } from '../control/find.js'
import { MountError, printable } from '../errors.js'
import type { MountState } from '../fs/status/mount-state.js'
import { FS_TYPE, listMounts, type MountInfo, ownerOf } from '../io/mountinfo.js'
import { parse } from './arguments.js'
import { OPTIONS } from './help/list.js'
import { print } from './output.js'
import { textTable } from './text-table.js'

/** A server that answers later counts as one that does not. */
const ANSWER_MS = 5_000

interface Row {
  readonly mountpoint: string
  readonly image: string
  /** These are null if the server does not say. */
  readonly format: string | null
  readonly mode: string | null
  readonly since: string | null
  readonly pid: number | null
  readonly state: string
  /** The user id of who has mounted it. */
  readonly user: number
}

export async function run(args: string[]): Promise<number> {
  const { values } = parse(args, OPTIONS, 'list', [])
  const user = process.geteuid?.()
  const mounts = listMounts().filter(
    mount => mount.type === FS_TYPE && (user === 0 || ownerOf(mount) === user),
  )
  const rows = await Promise.all(mounts.map(rowOf))
  if (values.json) print(`${JSON.stringify(rows, undefined, 2)}\n`)
  else if (rows.length > 0) print(tableOf(rows))
  return 0
}

async function rowOf(mount: MountInfo): Promise<Row> {
  const { mountpoint, source } = mount
  const known = { mountpoint, user: ownerOf(mount) }
  const isReadOnly = mount.flags.split(',').includes('ro')
  const unknown = { ...known, image: source, format: null, since: null, pid: null }
  try {
    const server = await connectToMount(mount, ANSWER_MS)
    try {
      const { image, pid } = server.greeting
      const said = await inTime(server.ask({ do: 'status' }, () => {}))
      const state = mountStateIn(said)
      if (!state)
        return { ...unknown, image, pid, mode: isReadOnly ? 'ro' : null, state: 'unknown' }
      const { format, since } = state
      const mode = isReadOnly ? 'ro' : state.mode
      return {
        mountpoint,
        image,
        format,
        mode,
        since,
        pid,
        state: stateOf(state),
        user: known.user,
      }
    } finally {
      server.close()
    }
  } catch (error) {
    if (!(error instanceof MountError)) throw error
    return { ...unknown, mode: isReadOnly ? 'ro' : null, state: 'no answer' }
  }
}

function inTime<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new MountError('it does not answer')), ANSWER_MS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}

/** Returns what a server says of itself; undefined if that is something else: another user's may say anything. */
function mountStateIn(said: unknown): MountState | undefined {
  const { format, mode, since, dirty, failure, replaced } = (said ?? {}) as Record<string, unknown>
  const isWhole =
    typeof format === 'string' &&
    typeof since === 'string' &&
    (mode === 'ro' || mode === 'rw' || mode === 'scratch') &&
    typeof dirty === 'boolean' &&
    typeof replaced === 'boolean' &&
    (failure === null || typeof failure === 'string')
  return isWhole ? (said as MountState) : undefined
}

const stateOf = ({ failure, replaced, dirty }: MountState): string =>
  failure !== null ? 'errors' : replaced ? 'image replaced' : dirty ? 'dirty' : 'ok'

function tableOf(rows: readonly Row[]): string {
  const users = new Set(rows.map(({ user }) => user))
  const hasOthers = [...users].some(user => user !== process.geteuid?.())
  const head = ['MOUNTPOINT', 'IMAGE', 'FORMAT', 'MODE', 'SINCE', 'PID', 'STATE']
  const lines = rows.map(row => [
    ...[row.mountpoint, row.image, row.format, row.mode, localTime(row.since), row.pid, row.state],
    ...(hasOthers ? [row.user] : []),
  ])
  const cells = [[...head, ...(hasOthers ? ['USER'] : [])], ...lines].map(line =>
    line.map(cell => (cell === null ? '-' : printable(String(cell)))),
  )
  return textTable(cells)
}

/** Returns a time as this place has it, without its seconds. */
function localTime(iso: string | null): string | null {
  const date = new Date(iso ?? '')
  if (Number.isNaN(date.getTime())) return null
  const two = (number: number) => String(number).padStart(2, '0')
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`
}
