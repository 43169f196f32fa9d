/**
 * The options of `vimgfs mount` as -o spells them, for mount(8) and fstab: `threads=4` for `--threads 4`, `force` for
 * `--force`. A backslash stands before a comma in a value.
 */
import { UsageError } from '../errors.js'
import { optionPieces, unescaped } from '../fs/mounting/options.js'

type Described = Readonly<
  Record<string, { readonly type: 'boolean' | 'string'; readonly multiple?: boolean }>
>

/** Reports whether `piece` of a list for -o is an option of `vimgfs mount`. */
export const isSpelled = (piece: string, options: Described): boolean =>
  nameOf(piece) !== 'option' && Object.hasOwn(options, nameOf(piece))

/**
 * Returns `values` with what the lists for -o spell, which then keep only what the file system understands. A value that is
 * given twice counts as it was given last. Throws UsageError.
 */
export function withSpelled<V extends { option?: string[] }>(values: V, options: Described): V {
  const lists = values.option ?? []
  const spelled: Record<string, unknown> = { ...values }
  const rest: string[] = []
  for (const piece of lists.flatMap(optionPieces)) {
    if (isSpelled(piece, options)) add(spelled, piece, options)
    else rest.push(piece)
  }
  const readOnly = spelled['read-only'] === true
  if (readOnly && spelled['read-write'] === true) {
    throw new UsageError('--read-only and --read-write exclude each other')
  }
  if (readOnly) rest.push('ro')
  if (spelled['read-write'] === true) rest.push('rw')
  return { ...spelled, option: rest } as V
}

function add(values: Record<string, unknown>, piece: string, options: Described): void {
  const name = nameOf(piece)
  const { type, multiple } = options[name] as Described[string]
  const text = piece.slice(name.length + 1)
  const hasText = piece.length > name.length
  if (type === 'boolean') {
    if (hasText) throw new UsageError(`-o ${name} takes no value: leave out "=${text}"`)
    values[name] = true
    return
  }
  if (text === '') throw new UsageError(`-o ${name} needs a value: -o ${name}=…`)
  const value = unescaped(text)
  values[name] = multiple ? [...((values[name] as string[] | undefined) ?? []), value] : value
}

const nameOf = (piece: string): string => piece.split('=', 1)[0] ?? ''
