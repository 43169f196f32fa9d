/** The usage of an image as it comes over the socket. Nothing is taken on trust. */
import { MountError } from '../errors.js'
import type { DiskMap } from '../formats/disk-map.js'
import type { ImageUsage, LayerUsage } from '../image/usage.js'

const SPACE = [
  ...['dataBytes', 'compressedBytes', 'zeroBytes', 'metadataBytes', 'leakedBytes', 'freeBytes'],
]
const COMPRESSION = ['units', 'unpackedBytes', 'packedBytes']
const SIZES = ['fileBytes', 'allocatedBytes', 'tableBytes', 'heldBytes', 'usedBytes']
const REACH = ['referencedBytes', 'exclusiveBytes']
const COLUMNS = ['data', 'compressed', 'zero', 'below', 'sharedWith'] as const

/** Throws MountError. */
export function receivedUsage(value: unknown): ImageUsage {
  const usage = record(value)
  const { layers, snapshots, problems, disk, chosen, map } = usage
  const isWhole =
    isCount(usage.diskBytes) &&
    isListOf(layers, isLayer) &&
    layers.length > 0 &&
    isListOf(snapshots, one => hasCounts(one, REACH) && hasTexts(one, ['id', 'name'])) &&
    isListOf(problems, one => typeof one === 'string') &&
    [disk, chosen].every(one => one === undefined || hasCounts(one, REACH)) &&
    (map === undefined || isMap(map))
  if (!isWhole) throw nonsense()
  return usage as unknown as ImageUsage
}

const isLayer = (value: unknown): value is LayerUsage => {
  if (!hasCounts(value, SIZES) || !hasTexts(value, ['path', 'format'])) return false
  const { unitBytes, space, compression } = value as Record<string, unknown>
  const isKnown = unitBytes !== undefined || space !== undefined || compression !== undefined
  return (
    !isKnown ||
    (isCount(unitBytes) && hasCounts(space, SPACE) && hasCounts(compression, COMPRESSION))
  )
}

function isMap(value: unknown): value is DiskMap {
  if (!hasCounts(value, ['cellBytes'])) return false
  const columns = COLUMNS.map(name => (value as Record<string, unknown>)[name])
  const [first] = columns
  return columns.every(
    column => isListOf(column, isCount) && column.length === (first as unknown[]).length,
  )
}

const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0

const isListOf = (value: unknown, isOne: (one: unknown) => boolean): value is unknown[] =>
  Array.isArray(value) && value.every(isOne)

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null

const hasCounts = (value: unknown, names: readonly string[]): boolean =>
  isRecord(value) && names.every(name => isCount(value[name]))

const hasTexts = (value: unknown, names: readonly string[]): boolean =>
  isRecord(value) && names.every(name => typeof value[name] === 'string')

function record(value: unknown): Record<string, unknown> {
  if (!isRecord(value)) throw nonsense()
  return value
}

const nonsense = () =>
  new MountError('the server of the mount gives a result that this version does not understand')
