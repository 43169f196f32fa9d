/** The options of a new LUKS header, with the names and the defaults of QEMU. */
import { UsageError } from '../errors.js'
import type { CreateOption, OptionValues } from '../formats/creating.js'
import type { IvGenerator } from './spec.js'

const CIPHERS = ['aes-128', 'aes-192', 'aes-256'] as const
const MODES = ['ecb', 'cbc', 'xts'] as const
const GENERATORS = ['plain', 'plain64', 'essiv'] as const
const HASH_NAMES = ['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160'] as const
/** Hashes whose digest is a key of AES. */
const ESSIV_HASHES = ['md5', 'sha256'] as const

export const LUKS_OPTIONS: readonly CreateOption[] = [
  {
    name: 'cipher-alg',
    type: CIPHERS,
    default: 'aes-256',
    help: 'cipher, with the bits of its key',
  },
  { name: 'cipher-mode', type: MODES, default: 'xts', help: 'mode of the cipher' },
  {
    name: 'hash-alg',
    type: HASH_NAMES,
    default: 'sha256',
    help: 'hash that makes the passphrase a key',
  },
  {
    name: 'iter-time',
    type: 'count',
    default: '2000',
    help: 'how long trying a passphrase takes, in milliseconds',
  },
  {
    name: 'ivgen-alg',
    type: GENERATORS,
    default: 'plain64',
    help: 'how sectors get their vectors',
  },
  { name: 'ivgen-hash-alg', type: ESSIV_HASHES, help: 'hash of ivgen-alg=essiv (sha256)' },
]

/** A tested choice: what the header says. */
export interface LuksChoice {
  readonly cipherName: 'aes'
  /** The size of the master key, both keys of XTS together. */
  readonly keyBytes: number
  readonly mode: (typeof MODES)[number]
  readonly ivGenerator: Exclude<IvGenerator, 'none'>
  readonly ivHash: string | undefined
  readonly hash: string
  readonly milliseconds: number
}

/** Returns the choice of `options`, whose words are those that LUKS_OPTIONS lists. Throws UsageError. */
export function luksChoice(options: OptionValues): LuksChoice {
  const text = (name: string) => options[name] as string | undefined
  const mode = (text('cipher-mode') ?? 'xts') as LuksChoice['mode']
  const ivGenerator = (text('ivgen-alg') ?? 'plain64') as LuksChoice['ivGenerator']
  const asked = text('ivgen-hash-alg')
  if (asked !== undefined && ivGenerator !== 'essiv') {
    throw new UsageError('encrypt.ivgen-hash-alg needs encrypt.ivgen-alg=essiv')
  }
  const milliseconds = (options['iter-time'] as number | undefined) ?? 2000
  if (milliseconds < 1) throw new UsageError('encrypt.iter-time is at least 1 millisecond')
  const bits = Number((text('cipher-alg') ?? 'aes-256').slice('aes-'.length))
  return {
    cipherName: 'aes',
    keyBytes: (bits / 8) * (mode === 'xts' ? 2 : 1),
    mode,
    ivGenerator,
    ivHash: ivGenerator === 'essiv' ? (asked ?? 'sha256') : undefined,
    hash: text('hash-alg') ?? 'sha256',
    milliseconds,
  }
}
