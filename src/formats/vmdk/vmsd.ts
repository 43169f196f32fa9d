/**
 * Reads the snapshots of a virtual machine (.vmsd) and its disks (.vmx). Both are dictionaries, see text.ts. There is a sample
 * of a .vmsd in vatesfr/xen-orchestra, vmware-explorer/parsers/vmsd.mjs.
 *
 * The files only say which disk belongs to which snapshot. So damaged parts are left out, and the disks can still be read.
 */
import { ImageError } from '../../errors.js'
import {
  MAX_FILE_NAME_BYTES,
  MAX_SNAPSHOT_DESCRIPTION_LENGTH,
  MAX_SNAPSHOT_NAME_LENGTH,
  MAX_VM_DISKS,
  MAX_VMSD_BYTES,
  MAX_VMSD_SNAPSHOTS,
  MAX_VMX_BYTES,
} from '../limits.js'
import { keyValue, readText, textBytes, unescaped } from './text.js'

export interface VmsdSnapshot {
  readonly uid: number
  /** The parent's uid as written: it may not exist. Undefined for a root of the tree. */
  readonly parent: number | undefined
  readonly displayName: string
  readonly description: string
  readonly created: Date | undefined
  readonly disks: readonly VmsdDisk[]
}

export interface VmsdDisk {
  /** The disk's descriptor at the time of the snapshot, as written. */
  readonly fileName: string
  /** The device node in lower case, such as `scsi0:0`; empty if the file does not say. */
  readonly node: string
}

export interface VmsdSnapshots {
  /** The snapshot on which the VM's disks are based; undefined if it is none of `snapshots`. */
  readonly current: number | undefined
  /** Parents come before their children, siblings by uid. Snapshots that are their own ancestors come last. */
  readonly snapshots: readonly VmsdSnapshot[]
}

/** Throws ImageError if the file is not a .vmsd. An empty file belongs to a VM without snapshots. */
export function parseVmsd(bytes: Buffer, path: string): VmsdSnapshots {
  if (bytes.length > MAX_VMSD_BYTES) {
    throw new ImageError('CORRUPT', `the .vmsd file has more than ${MAX_VMSD_BYTES} bytes`, {
      path,
      hint: LEAVE_OUT,
    })
  }
  const entries = readDictionary(bytes, /^(?:\.encoding$|snapshot)/)
  if (entries.size === 0 && /[^ \t\r\n]/.test(bytes.toString('latin1'))) {
    throw new ImageError('NOT_AN_IMAGE', 'this is no .vmsd file: it names no snapshots', {
      path,
      hint: LEAVE_OUT,
    })
  }
  const found = new Map<number, VmsdSnapshot>()
  for (const record of recordsOf(entries)) {
    const snapshot = snapshotOf(record)
    if (snapshot && !found.has(snapshot.uid)) found.set(snapshot.uid, snapshot)
  }
  const current = uidOf(entries.get('snapshot.current'))
  return {
    current: current !== undefined && found.has(current) ? current : undefined,
    snapshots: inTreeOrder([...found.values()]),
  }
}

/** Returns the disks that a .vmx file names, by node in lower case. Throws ImageError if the file is too long. */
export function parseVmxDisks(bytes: Buffer): readonly { node: string; fileName: string }[] {
  if (bytes.length > MAX_VMX_BYTES) {
    throw new ImageError('CORRUPT', `the .vmx file has more than ${MAX_VMX_BYTES} bytes`, {
      hint: LEAVE_OUT,
    })
  }
  const entries = readDictionary(bytes, /^(?:scsi|ide|sata|nvme)/)
  const disks: { node: string; fileName: string }[] = []
  for (const [key, fileName] of entries) {
    const node = /^((?:scsi|ide|sata|nvme)[0-9]{1,3}:[0-9]{1,3})\.filename$/.exec(key)?.[1]
    if (node === undefined || !isFileName(fileName) || disks.length === MAX_VM_DISKS) continue
    const isPresent = entries.get(`${node}.present`)?.toLowerCase() !== 'false'
    const isCdrom = /cdrom/i.test(entries.get(`${node}.devicetype`) ?? '')
    if (isPresent && !isCdrom) disks.push({ node, fileName })
  }
  return disks
}

const LEAVE_OUT = 'move it away to go on without it; the disks do not need it'

type Entries = ReadonlyMap<string, string>

/** Returns the entries with `wanted` keys, in lower case. If a key occurs twice, the first one counts. */
function readDictionary(bytes: Buffer, wanted: RegExp): Entries {
  const { lines, decode } = readText(textBytes(bytes), '.encoding')
  const entries = new Map<string, string>()
  for (const line of lines) {
    const found = keyValue(line)
    const key = found?.key.toLowerCase()
    if (!found || key === undefined || !wanted.test(key) || entries.has(key)) continue
    entries.set(key, unescaped(found.value, decode))
  }
  return entries
}

/** Returns the entries of each `snapshotN.`, by N. Entries of removed snapshots may remain after the last. */
function recordsOf(entries: Entries): Entries[] {
  const count = countOf(entries.get('snapshot.numsnapshots'), MAX_VMSD_SNAPSHOTS)
  const records = new Map<number, Map<string, string>>()
  for (const [key, value] of entries) {
    const [, index, name] = /^snapshot([0-9]{1,6})\.(.+)$/.exec(key) ?? []
    if (index === undefined || name === undefined || Number(index) >= count) continue
    const record = records.get(Number(index)) ?? new Map<string, string>()
    if (!record.has(name)) record.set(name, value)
    records.set(Number(index), record)
  }
  return [...records].sort(([a], [b]) => a - b).map(([, record]) => record)
}

function snapshotOf(record: Entries): VmsdSnapshot | undefined {
  const uid = uidOf(record.get('uid'))
  if (uid === undefined) return undefined
  return {
    uid,
    parent: uidOf(record.get('parent')),
    displayName: (record.get('displayname') ?? '').slice(0, MAX_SNAPSHOT_NAME_LENGTH),
    description: (record.get('description') ?? '').slice(0, MAX_SNAPSHOT_DESCRIPTION_LENGTH),
    created: dateOf(record.get('createtimehigh'), record.get('createtimelow')),
    disks: disksOf(record),
  }
}

function disksOf(record: Entries): VmsdDisk[] {
  const count = countOf(record.get('numdisks'), MAX_VM_DISKS)
  const disks = new Map<number, VmsdDisk>()
  for (const [key, fileName] of record) {
    const index = /^disk([0-9]{1,6})\.filename$/.exec(key)?.[1]
    if (index === undefined || Number(index) >= count || !isFileName(fileName)) continue
    const node = (record.get(`disk${index}.node`) ?? '').toLowerCase()
    if (!disks.has(Number(index))) disks.set(Number(index), { fileName, node })
  }
  return [...disks].sort(([a], [b]) => a - b).map(([, disk]) => disk)
}

const isFileName = (name: string): boolean =>
  name !== '' && !name.includes('\0') && Buffer.byteLength(name) <= MAX_FILE_NAME_BYTES

/** Returns how many entries count: `most` if the file does not say. */
function countOf(value: string | undefined, most: number): number {
  return value !== undefined && /^[0-9]{1,10}$/.test(value) ? Math.min(Number(value), most) : most
}

const uidOf = (value: string | undefined): number | undefined =>
  value !== undefined && /^[0-9]{1,10}$/.test(value) ? Number(value) : undefined

/** Returns a date from two halves of the microseconds since 1970, written as signed 32-bit numbers. */
function dateOf(high: string | undefined, low: string | undefined): Date | undefined {
  const [upper, lower] = [high, low].map(half =>
    half !== undefined && /^-?[0-9]{1,10}$/.test(half) ? Number(half) : Number.NaN,
  ) as [number, number]
  if (!(lower >= -(2 ** 31) && lower < 2 ** 32)) return undefined
  const created = new Date((upper * 2 ** 32 + (lower >>> 0)) / 1000)
  return created.getTime() >= 0 ? created : undefined
}

function inTreeOrder(snapshots: readonly VmsdSnapshot[]): VmsdSnapshot[] {
  const byUid = [...snapshots].sort((a, b) => a.uid - b.uid)
  const uids = new Set(byUid.map(({ uid }) => uid))
  const children = new Map<number | undefined, VmsdSnapshot[]>()
  for (const snapshot of byUid) {
    const { parent } = snapshot
    const key = parent !== undefined && uids.has(parent) ? parent : undefined
    const siblings = children.get(key)
    if (siblings) siblings.push(snapshot)
    else children.set(key, [snapshot])
  }
  const ordered = new Set<VmsdSnapshot>()
  const next = (children.get(undefined) ?? []).toReversed()
  for (let snapshot = next.pop(); snapshot; snapshot = next.pop()) {
    ordered.add(snapshot)
    next.push(...(children.get(snapshot.uid) ?? []).toReversed())
  }
  // A snapshot that is not reached from a root is on a loop, or a descendant of one.
  return [...ordered, ...byUid.filter(snapshot => !ordered.has(snapshot))]
}
