/** A list of snapshots as it comes over the socket: text in place of whole numbers of 64 bits, and nothing is taken on trust. */
import { MountError } from '../errors.js'
import type { SnapshotInfo } from '../image/info.js'
import type { FrozenInfo, LayerInfo, SnapshotList } from '../image/snapshots/snapshot-list.js'

/** Returns `list` as JSON can say it. */
export const sentList = (list: SnapshotList | readonly SnapshotInfo[]): unknown =>
  JSON.parse(JSON.stringify(list, (_, value) => (typeof value === 'bigint' ? `${value}` : value)))

/** Returns what `sentList` has returned, and nothing else. Throws MountError if it is something else. */
export function receivedList(value: unknown): SnapshotList {
  const { snapshots, layers, 'machine-snapshots': machine } = record(value)
  return {
    ...(picked(value, ['filename', 'format'], []) as Pick<SnapshotList, 'filename' | 'format'>),
    snapshots: listOf(snapshots, snapshotInfo),
    'machine-snapshots': machine === undefined ? undefined : listOf(machine, frozenInfo),
    layers: layers === undefined ? undefined : listOf(layers, layerInfo),
  }
}

/** Does the same for snapshots alone. */
export const receivedSnapshots = (value: unknown): SnapshotInfo[] => listOf(value, snapshotInfo)

const TEXTS = ['name', 'id']
const NUMBERS = ['vm-clock-nsec', 'date-sec', 'date-nsec', 'vm-clock-sec', 'vm-state-size']

function snapshotInfo(value: unknown): SnapshotInfo {
  const { icount } = record(value)
  if (icount !== undefined && !/^-?[0-9]{1,20}$/.test(String(icount))) throw nonsense()
  return {
    icount: icount === undefined ? undefined : BigInt(String(icount)),
    ...picked(value, TEXTS, NUMBERS),
  } as SnapshotInfo
}

function frozenInfo(value: unknown): FrozenInfo {
  const { parent } = record(value)
  if (parent !== undefined && typeof parent !== 'string') throw nonsense()
  return {
    ...snapshotInfo(value),
    parent,
    ...(picked(value, ['description', 'filename'], []) as Pick<
      FrozenInfo,
      'description' | 'filename'
    >),
  }
}

const layerInfo = (value: unknown): LayerInfo =>
  ({
    ...picked(value, ['filename', 'format'], ['layer', 'virtual-size']),
    snapshots: listOf(record(value).snapshots, snapshotInfo),
  }) as unknown as LayerInfo

function listOf<T>(value: unknown, parse: (one: unknown) => T): T[] {
  if (!Array.isArray(value)) throw nonsense()
  return value.map(parse)
}

function record(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) throw nonsense()
  return value as Record<string, unknown>
}

/** Returns the fields `texts` and `numbers` of an object, which must have them. */
function picked(
  value: unknown,
  texts: readonly string[],
  numbers: readonly string[],
): Record<string, unknown> {
  const all = record(value)
  const isWhole =
    texts.every(name => typeof all[name] === 'string') &&
    numbers.every(name => Number.isSafeInteger(all[name]))
  if (!isWhole) throw nonsense()
  // In the order of the command's own lists.
  const names = [...texts, ...numbers]
  return Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)))
}

const nonsense = () =>
  new MountError('the server of the mount gives a list that this version does not understand')
