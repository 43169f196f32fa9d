/**
 * Decides to which hosts a redirect may lead. A server must not make this machine ask services that only it can reach: redirects to
 * loopback and link-local addresses are refused, unless the image's own address has that host.
 */
import dns from 'node:dns'
import net, { type LookupFunction } from 'node:net'

const REFUSED = new net.BlockList()
REFUSED.addSubnet('127.0.0.0', 8)
REFUSED.addSubnet('0.0.0.0', 8)
REFUSED.addSubnet('169.254.0.0', 16)
REFUSED.addAddress('::1', 'ipv6')
REFUSED.addAddress('::', 'ipv6')
REFUSED.addSubnet('fe80::', 10, 'ipv6')

/** Reports whether an IP address is one of this machine alone, or of its link. */
export function isNear(address: string): boolean {
  const plain = address.replace(/^\[|\]$/g, '').replace(/%.*$/, '')
  const version = net.isIP(plain)
  if (version === 0) return /(^|\.)localhost\.?$/i.test(plain)
  const mapped = version === 6 ? mappedIn(plain) : undefined
  if (mapped !== undefined) return REFUSED.check(mapped)
  return REFUSED.check(plain, version === 6 ? 'ipv6' : 'ipv4')
}

/** Returns the IPv4 address within an IPv6 one: mapped, or by NAT64. */
function mappedIn(address: string): string | undefined {
  const whole = new URL(`http://[${address}]/`).hostname.slice(1, -1)
  const [, high = '', low = ''] =
    /^(?:::ffff:|::|64:ff9b::)([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(whole) ?? []
  if (high === '') return undefined
  const bits = Number.parseInt(high, 16) * 2 ** 16 + Number.parseInt(low, 16)
  return [24, 16, 8, 0].map(shift => Math.floor(bits / 2 ** shift) % 256).join('.')
}

/** Finds the addresses of a host, and refuses near ones. The connection is made to what was found, so a later answer changes nothing. */
export const lookupFar: LookupFunction = (host, options, callback) => {
  dns.lookup(host, { ...options, all: true }, (error, found) => {
    if (error) return callback(error, '', 0)
    const far = found.filter(({ address }) => !isNear(address))
    const [first] = far
    if (!first) {
      const refusal = Object.assign(new Error(NEAR), { code: 'ERR_NEAR' })
      return callback(refusal, '', 0)
    }
    if (options.all) callback(null, far)
    else callback(null, first.address, first.family)
  })
}

export const NEAR = 'the server redirects to an address of this machine or its link'
